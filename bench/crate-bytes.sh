#!/bin/sh
# Prints how many bytes of the daemon each crate accounts for: code and read-only data by symbol name. An inlined function
# counts for the crate into which it was inlined. docs/DEPENDENCIES.md quotes the result.
#
#     bench/crate-bytes.sh [DAEMON]     one that has its symbols; without, it is built
#     bench/crate-bytes.sh --for-size   what they would be if Cargo.toml had no crate compiled for speed
set -eu
CDPATH='' cd "$(dirname "$0")/.."
if [ "${1:-}" = --for-size ]; then
  triple=$(uname -m)-unknown-linux-musl
  set -- --config profile.release.strip=false
  fast=$(sed -n 's/^\[profile\.release\.package\.\(.*\)\]$/\1/p' Cargo.toml)
  for crate in $fast; do
    set -- "$@" --config "profile.release.package.$crate.opt-level=\"z\""
  done
  cargo build --quiet --locked --release -p teemarkd --bin teemarkd --no-default-features --target "$triple" \
    --target-dir target/for-size "$@"
  set -- "target/for-size/$triple/release/teemarkd"
fi
daemon=${1:-$(image/programs.sh --symbols | sed -n 1p)}
nm --demangle --print-size --radix=d "$daemon" | awk '
  $3 ~ /^[tTrRdD]$/ {
    name = $0
    sub(/^[0-9]+ [0-9]+ . /, "", name)
    if (name ~ /^ring_core|^ecp_/) crate = "ring (C and assembly)"
    else if (match(name, /[a-z_0-9]+::/)) crate = substr(name, RSTART, RLENGTH - 2)
    else crate = "libc and other C"
    bytes[crate] += $2
  }
  END { for (crate in bytes) if (bytes[crate] >= 1000) printf "%8d  %s\n", bytes[crate], crate }' | sort -rn
