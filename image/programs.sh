#!/bin/sh
# Builds the programs that run in the enclave, teemarkd and init: static, stripped, and the same bytes wherever the
# clone, cargo's folder and the toolchain lie. Prints the two paths, a line each.
set -eu
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
  RUSTFLAGS="$flags" cargo build --quiet --locked --target "$triple" --target-dir "$target" "$@"
}
build --release --package teemarkd --bin teemarkd
build --profile init --package init --bin init
printf '%s\n' "$target/$triple/release/teemarkd" "$target/$triple/init/init"
