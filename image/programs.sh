#!/bin/sh
# Builds the programs that run in the enclave, teemarkd and init: static, stripped, and the same bytes wherever the
# clone, cargo's folder and the toolchain lie. Prints the two paths, a line each.
#
#     image/programs.sh              as they are shipped
#     image/programs.sh --test-nsm   teemarkd with its stand-in for the Nitro Secure Module, for machines without one
#     image/programs.sh --symbols    as they are shipped, but teemarkd with the names of its functions, for measuring
set -eu
strip=symbols
case "${1:-}" in
  "") variant=shipped features=--no-default-features ;;
  --test-nsm) variant=testnsm features=--features=test-nsm ;;
  --symbols) variant=symbols features=--no-default-features strip=none ;;
  *) echo "image/programs.sh: unknown argument $1; see its first lines" >&2; exit 2 ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd)
target=$root/target/image
triple=x86_64-unknown-linux-musl

# Panic messages name source files. Each folder of this machine gets a name of its own: the clone, the crates, and the
# standard library's source, which has its official name where it is not installed.
commit=$(rustc -vV | sed -n 's/^commit-hash: //p')
flags="--remap-path-prefix=$root=/teemark"
flags="$flags --remap-path-prefix=$(rustc --print sysroot)/lib/rustlib/src/rust=/rustc/$commit"
cd "$root"
cargo fetch --quiet --locked --target "$triple"
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
  flags="$flags --remap-path-prefix=$registry=/crates"
done

build() {
  command=$1
  shift
  RUSTFLAGS="$flags" cargo "$command" --quiet --locked --target "$triple" --target-dir "$target" "$@"
}
# Cargo leaves all variants of the daemon under one name, so each gets a folder of its own, and only one is built at a time.
mkdir -p "$target/$variant"
exec 9>"$target/lock"
flock 9
if [ "$strip" = symbols ]; then
  build build --release --package teemarkd --bin teemarkd "$features"
else
  # For the program alone, so that everything that it is linked from stays as it is.
  build rustc --release --package teemarkd --bin teemarkd "$features" -- -C strip="$strip"
fi
build build --profile init --package init --bin init
cp "$target/$triple/release/teemarkd" "$target/$variant/teemarkd.new"
mv "$target/$variant/teemarkd.new" "$target/$variant/teemarkd"
flock -u 9
printf '%s\n' "$target/$variant/teemarkd" "$target/$triple/init/init"
