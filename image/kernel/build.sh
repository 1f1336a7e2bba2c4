#!/bin/sh
# Builds the enclave's kernel from Debian's linux-source-6.12 with the patches of patches/, and prints the folder that
# holds it: bzImage (on aarch64 Image), its whole configuration (config) and where it comes from (origin). Kept outside
# the clone, under a name made from everything it is made of, since a build takes some ten minutes: the same
# configuration, source, patches and compiler give the same bytes.
#
#     image/kernel/build.sh [--config] [--arch ARCH] [--compression gzip] [--unpatched]
#
# --config       only makes the configuration, checks that the patches apply, and prints the configuration
# --arch         x86_64 or aarch64; by default that of this machine. Another one needs Debian's cross compiler
# --compression  gzip in place of xz, for the kernel and for the ramdisks that it takes: docs/HARDWARE.md
# --unpatched    without patches/, to see what they are for: make vm-test UNPATCHED=1
set -eu
here=$(cd "$(dirname "$0")" && pwd)
source=${LINUX_SOURCE:-/usr/src/linux-source-6.12.tar.xz}
fail() {
  echo "image/kernel: $*" >&2
  exit 1
}

only_config='' arch=$(uname -m) compression=xz unpatched=''
while [ $# -gt 0 ]; do
  case $1 in
    --config) only_config=1 ;;
    --unpatched) unpatched=1 ;;
    --arch | --compression)
      [ $# -ge 2 ] || fail "$1 needs a value; see the first lines of $0"
      if [ "$1" = --arch ]; then arch=$2; else compression=$2; fi
      shift
      ;;
    *) fail "unknown argument $1; see the first lines of $0" ;;
  esac
  shift
done
case $arch in
  x86_64) kbuild_arch=x86_64 image=arch/x86/boot/bzImage ;;
  # An EIF for aarch64 holds the uncompressed Image.
  aarch64) kbuild_arch=arm64 image=arch/arm64/boot/Image ;;
  *) fail "no configuration for $arch" ;;
esac
cross=
[ "$arch" = "$(uname -m)" ] || cross=$arch-linux-gnu-
set -- "$here/common.config" "$here/$arch.config"
# A later file overrules an earlier one.
[ "$compression" = xz ] || set -- "$@" "$here/$arch-$compression.config"
for file; do [ -f "$file" ] || fail "no configuration for $arch with $compression"; done

[ -f "$source" ] ||
  fail "$source is not there: on Debian 12, sudo apt-get install linux-source-6.12 (or set LINUX_SOURCE)"
command -v "${cross}gcc" >/dev/null ||
  fail "${cross}gcc is not there: on Debian 12, sudo apt-get install gcc${cross:+-$arch-linux-gnu}"

patches() { [ -n "$unpatched" ] || find "$here/patches" -name '*.patch' | LC_ALL=C sort; }
# Each option of the configuration files once, as the last one has it.
wanted() { cat "$@" | sed -nE '/^CONFIG_|^# CONFIG_.* is not set$/p' | awk '
  { name = $1 == "#" ? $2 : substr($1, 1, index($1, "=") - 1); if (!(name in line)) names[++n] = name; line[name] = $0 }
  END { for (i = 1; i <= n; i++) print line[names[i]] }'; }

origin=$(
  cd "$here"
  sha256sum build.sh
  wanted "$@" | sha256sum | sed 's|-$|configuration, without its comments|'
  patches | while read -r patch; do sha256sum "patches/$(basename "$patch")"; done
  cd "$(dirname "$source")"
  sha256sum "$(basename "$source")"
  "${cross}gcc" --version | head -n 1
  "${cross}ld" --version | head -n 1
)
key=$(printf '%s' "$origin" | sha256sum | cut -c 1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/teemark
kernel=$cache/kernel-$key

# Runs a command of the kernel's build without the caller's environment: the build obeys LLVM, KCFLAGS, LOCALVERSION,
# MAKEFLAGS and some forty other variables, and none of them is in the key. With LLVM=1 it would be built by clang and
# LLD, and such a kernel stays mute on Nitro (MystenLabs/hashi, pull request 789). Nothing of this machine or of this
# moment goes into the image either.
clean() {
  env -i PATH="$PATH" LC_ALL=C ARCH="$kbuild_arch" CROSS_COMPILE="$cross" \
    KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_USER=teemark KBUILD_BUILD_HOST=teemark \
    KBUILD_BUILD_VERSION=1 "$@"
}

# Configures the source in the current folder; a line of ours that Kconfig dropped or overruled ends the build.
configure() {
  clean make -s tinyconfig
  wanted "$@" >lines
  clean scripts/kconfig/merge_config.sh -m .config lines >/dev/null
  clean make -s olddefconfig
  while read -r line; do
    case $line in
      CONFIG_*) grep -qxF -- "$line" .config || echo "$line" ;;
      *)
        name=${line#\# }
        ! grep -q -- "^${name%% *}=" .config || echo "$line"
        ;;
    esac
  done <lines >lost
  if [ -s lost ]; then
    echo "image/kernel: Kconfig did not take these lines:" >&2
    cat lost >&2
    return 1
  fi
}

# Unpacks the source into a folder of its own, and applies the patches.
unpack() {
  work=$(mktemp -d "$cache/build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' INT TERM
  # Half of the source is drivers that no enclave has a device for; of those the Kconfig files suffice.
  tar -xJf "$source" -C "$work" --strip-components=1 --exclude='*/drivers/gpu/*.[ch]' --exclude='*/drivers/media/*.[ch]' \
    --exclude='*/drivers/net/ethernet/*.[ch]' --exclude='*/drivers/net/wireless/*.[ch]' --exclude='*/sound/*.[ch]'
  cd "$work"
  patches | while read -r patch; do
    patch --strip=1 --forward --fuzz=0 --silent <"$patch" >&2 ||
      fail "$patch does not apply to $source. Port it to that version, or set LINUX_SOURCE to the one it was made for"
  done
}

mkdir -p "$cache"
if [ -n "$only_config" ]; then
  unpack
  configure "$@"
  cat .config
  exit
fi

# Two builds at once: the second waits and finds the first's.
exec 9>"$cache/kernel.lock"
flock 9
if [ ! -f "$kernel/$(basename "$image")" ]; then
  echo "building the kernel, once, into $kernel (some ten minutes on two processors)" >&2
  unpack
  configure "$@"
  clean make -s -j"$(nproc)" "$(basename "$image")" >&2
  rm -rf "$kernel"
  mkdir "$work/kept"
  cp "$image" "$work/kept/"
  cp .config "$work/kept/config"
  printf '%s\n' "$origin" >"$work/kept/origin"
  mv "$work/kept" "$kernel"
fi
echo "$kernel"
