#!/bin/sh
# Builds the enclave's kernel from Debian's linux-source-6.12 with the patches of patches/, and prints the folder that
# holds it: bzImage (on aarch64 Image), its whole configuration (config) and where it comes from (origin). Kept outside
# the clone, in a folder named after a hash of all its inputs, since a build takes some ten minutes: the same
# configuration, source, patches and compiler give the same bytes.
#
#     image/kernel/build.sh [--config] [--arch ARCH] [--compression gzip] [--unpatched] [--shorter-rings]
#
# --config         only makes the configuration, checks that the patches apply, and prints the configuration
# --arch           x86_64 or aarch64; by default that of this machine. Another one needs Debian's cross compiler
# --compression    gzip in place of xz, for the kernel and for the ramdisks that it takes: docs/HARDWARE.md
# --unpatched      without patches/, to see what they are for: make vm-test UNPATCHED=1
# --shorter-rings  with test-patches/ too, for the parameter virtio_mmio.max_ring: make vm-test RINGS=128
set -eu
# What tar and xz obey of the caller's environment; recipe.sh has the rest of the build without any of it.
unset TAR_OPTIONS XZ_OPT XZ_DEFAULTS
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)
source=${LINUX_SOURCE:-/usr/src/linux-source-6.12.tar.xz}
fail() {
  echo "image/kernel: $*" >&2
  exit 1
}

only_config='' arch=$(uname -m) compression=xz unpatched='' test_patch=''
while [ $# -gt 0 ]; do
  case $1 in
    --config) only_config=1 ;;
    --unpatched) unpatched=1 ;;
    --shorter-rings) test_patch=test-patches/virtio-mmio-shorter-rings.patch ;;
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
  x86_64) kbuild_arch=x86_64 image=bzImage ;;
  aarch64) kbuild_arch=arm64 image=Image ;;
  *) fail "no configuration for $arch: it is x86_64 or aarch64" ;;
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

# shellcheck source=image/kernel/recipe.sh
. "$here/recipe.sh"

origin=$(
  cd "$here"
  echo "$arch"
  grep -v '^ *#' recipe.sh | sha256sum | sed 's|-$|recipe.sh, without its comments|'
  wanted "$@" | sha256sum | sed 's|-$|configuration, without its comments|'
  patches | while read -r patch; do sha256sum "patches/$(basename "$patch")"; done
  [ -z "$test_patch" ] || sha256sum "$test_patch"
  CDPATH='' cd "$(dirname "$source")"
  sha256sum "$(basename "$source")"
  "${cross}gcc" --version | head -n 1
  "${cross}ld" --version | head -n 1
)
key=$(printf '%s' "$origin" | sha256sum | cut -c 1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/teemark
kernel=$cache/kernel-$key

# A folder of its own for the source; removed in the end.
enter() {
  work=$(mktemp -d "$cache/build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' INT TERM
  mkdir "$work/source" "$work/kept"
  cd "$work/source"
}

# What only a test needs is here and not in recipe.sh, whose text is part of the shipped kernel's key.
unpack_and_patch() {
  unpack
  [ -z "$test_patch" ] || patch --strip=1 --forward --fuzz=0 --silent <"$here/$test_patch" >&2 ||
    fail "$here/$test_patch does not apply to $source"
}

mkdir -p "$cache"
if [ -n "$only_config" ]; then
  enter
  unpack_and_patch
  configure "$@"
  cat .config
  exit
fi

if [ -f "$kernel/$image" ]; then
  echo "$kernel"
  exit
fi
# Two builds at once: the second waits and finds the first's.
exec 9>"$cache/kernel.lock"
flock 9
if [ ! -f "$kernel/$image" ]; then
  echo "building the kernel, once, into $kernel (some ten minutes on two processors)" >&2
  enter
  unpack_and_patch
  configure "$@"
  compile "$work/kept/$image"
  rm -rf "$kernel"
  cp .config "$work/kept/config"
  printf '%s\n' "$origin" >"$work/kept/origin"
  mv "$work/kept" "$kernel"
fi
echo "$kernel"
