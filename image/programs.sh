#!/bin/sh
# Builds the programs that run in the enclave, teemarkd and init: static, stripped, and the same bytes wherever the
# clone, cargo's folder and the toolchain lie. Prints the two paths, a line each.
#
#     image/programs.sh              as they are shipped
#     image/programs.sh --test-nsm   teemarkd with its stand-in for the Nitro Secure Module, for machines without one
#     image/programs.sh --symbols    as they are shipped, but teemarkd with the names of its functions, for measuring
#
# With --arch aarch64 or --arch x86_64 in front, for that architecture; otherwise for this machine's.
set -eu
arch=$(uname -m)
if [ "${1:-}" = --arch ]; then
  arch=${2:-}
  shift 2
fi
strip=symbols
case "${1:-}" in
  "") variant=shipped features=--no-default-features ;;
  --test-nsm) variant=testnsm features=--features=test-nsm ;;
  --symbols) variant=symbols features=--no-default-features strip=none ;;
  *) echo "image/programs.sh: unknown argument $1; see its first lines" >&2; exit 2 ;;
esac
root=$(CDPATH='' cd "$(dirname "$0")/.." && pwd)
target=$root/target/image
triple=$arch-unknown-linux-musl

# Cargo, rustc and ring's build obey CC, CFLAGS, CARGO_PROFILE_RELEASE_LTO, RUSTUP_TOOLCHAIN and many other variables of
# the caller, and any of them would change the PCRs in silence. So they get only these. A configuration of cargo in its own
# folder or above the clone still counts.
clean() {
  env -i PATH="$PATH" ${HOME:+"HOME=$HOME"} ${CARGO_HOME:+"CARGO_HOME=$CARGO_HOME"} ${RUSTUP_HOME:+"RUSTUP_HOME=$RUSTUP_HOME"} "$@"
}

cd "$root"
# With the caller's environment, which may have a proxy: the toolchain and the crates are downloaded here, if they have to be.
cargo fetch --quiet --locked --target "$triple"

# Panic messages name source files. Each folder of this machine gets a name of its own: the clone, the crates, and the
# standard library's source, which has its official name where it is not installed.
commit=$(clean rustc -vV | sed -n 's/^commit-hash: //p')
flags="--remap-path-prefix=$root=/teemark"
flags="$flags --remap-path-prefix=$(clean rustc --print sysroot)/lib/rustlib/src/rust=/rustc/$commit"
case $arch in
  x86_64) ;;
  # A linker keeps segments 64 KiB apart here, for kernels with pages of that size. The enclave's has 4 KiB.
  aarch64) flags="$flags -Clink-arg=-Wl,-z,max-page-size=4096" ;;
  *) echo "image/programs.sh: no enclave runs on $arch; it is x86_64 or aarch64" >&2; exit 2 ;;
esac
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
  flags="$flags --remap-path-prefix=$registry=/crates"
done

build() {
  command=$1
  shift
  clean RUSTFLAGS="$flags" cargo "$command" --quiet --locked --target "$triple" --target-dir "$target" "$@"
}
# Cargo leaves all variants of the daemon under one name, so each gets a folder of its own, and only one is built at a time.
result=$target/$arch/$variant
mkdir -p "$result"
exec 9>"$target/lock"
flock 9
if [ "$strip" = symbols ]; then
  build build --release --package teemarkd --bin teemarkd "$features"
else
  # For the program alone, so that everything that it is linked from stays as it is.
  build rustc --release --package teemarkd --bin teemarkd "$features" -- -C strip="$strip"
fi
build build --profile init --package init --bin init
cp "$target/$triple/release/teemarkd" "$result/teemarkd.new"
mv "$result/teemarkd.new" "$result/teemarkd"
flock -u 9
printf '%s\n' "$result/teemarkd" "$target/$triple/init/init"
