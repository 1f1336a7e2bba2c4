#!/bin/sh
# Builds the enclave's kernel from Debian's linux-source-6.12 and prints the folder that holds it: bzImage, its whole
# configuration (config) and where it comes from (origin). Kept outside the clone, under a name made from everything
# it is made of, since a build takes some ten minutes: the same configuration, source and compiler give the same bytes.
#
#     image/kernel/build.sh                   the kernel, built or kept
#     image/kernel/build.sh --config [ARCH]   only makes the configuration, of x86_64 or aarch64, checks and prints it
set -eu
here=$(cd "$(dirname "$0")" && pwd)
source=${LINUX_SOURCE:-/usr/src/linux-source-6.12.tar.xz}
if [ ! -f "$source" ]; then
  echo "$source is not there: on Debian 12, sudo apt-get install linux-source-6.12 (or set LINUX_SOURCE)" >&2
  exit 1
fi
arch=$(uname -m)
[ "${1:-}" != --config ] || arch=${2:-$arch}
case $arch in
  x86_64) export ARCH=x86_64 image=arch/x86/boot/bzImage ;;
  aarch64) export ARCH=arm64 image=arch/arm64/boot/Image.gz ;;
  *) echo "no kernel configuration for $arch" >&2; exit 1 ;;
esac

compiler=$(gcc --version | head -n 1)
linker=$(ld --version | head -n 1)
origin=$(
  cd "$here"
  sha256sum build.sh
  cat common.config "$arch.config" | grep -E '^(# )?CONFIG_' | sha256sum | sed 's|-$|configuration, without its comments|'
  cd "$(dirname "$source")"
  sha256sum "$(basename "$source")"
  printf '%s\n%s\n' "$compiler" "$linker"
)
key=$(printf '%s' "$origin" | sha256sum | cut -c 1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/teemark
kernel=$cache/kernel-$key

# Configures the source in the current folder; a line of ours that Kconfig dropped or overruled ends the build.
configure() {
  make -s tinyconfig
  scripts/kconfig/merge_config.sh -m .config "$here/common.config" "$here/$arch.config" >/dev/null
  make -s olddefconfig
  cat "$here/common.config" "$here/$arch.config" | while read -r line; do
    case $line in
      CONFIG_*) grep -qxF -- "$line" .config || echo "$line" ;;
      '# CONFIG_'*' is not set')
        name=${line#\# }
        ! grep -q -- "^${name%% *}=" .config || echo "$line"
        ;;
    esac
  done >lost
  if [ -s lost ]; then
    echo "image/kernel: Kconfig did not take these lines:" >&2
    cat lost >&2
    return 1
  fi
}

unpack() {
  work=$(mktemp -d "$cache/build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' INT TERM
  tar -xJf "$source" -C "$work" --strip-components=1
  cd "$work"
}

mkdir -p "$cache"
if [ "${1:-}" = --config ]; then
  unpack
  configure
  cat .config
  exit
fi

# Two builds at once: the second waits and finds the first's.
exec 9>"$cache/kernel.lock"
flock 9
if [ ! -f "$kernel/bzImage" ]; then
  echo "building the kernel, once, into $kernel (some ten minutes on two processors)" >&2
  unpack
  configure
  # Nothing of this machine or of this moment goes into the image.
  export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_USER=teemark KBUILD_BUILD_HOST=teemark
  export KBUILD_BUILD_VERSION=1 LC_ALL=C
  make -s -j"$(nproc)" "$(basename "$image")" >&2
  rm -rf "$kernel"
  mkdir "$work/kept"
  cp "$image" "$work/kept/bzImage"
  cp .config "$work/kept/config"
  printf '%s\n' "$origin" >"$work/kept/origin"
  mv "$work/kept" "$kernel"
fi
echo "$kernel"
