#!/bin/sh
# Prints how many bytes of the daemon each crate accounts for: code and read-only data by symbol name. An inlined function
# counts for the crate into which it was inlined. docs/DEPENDENCIES.md quotes the result.
set -eu
cd "$(dirname "$0")/.."
target=x86_64-unknown-linux-musl
CARGO_PROFILE_RELEASE_STRIP=false cargo build --quiet --release --target "$target" --target-dir target/unstripped
nm --demangle --print-size --radix=d "target/unstripped/$target/release/teemarkd" | awk '
  $3 ~ /^[tTrRdD]$/ {
    name = $0
    sub(/^[0-9]+ [0-9]+ . /, "", name)
    if (name ~ /^ring_core|^ecp_/) crate = "ring (C and assembly)"
    else if (match(name, /[a-z_0-9]+::/)) crate = substr(name, RSTART, RLENGTH - 2)
    else crate = "libc and other C"
    bytes[crate] += $2
  }
  END { for (crate in bytes) if (bytes[crate] >= 1000) printf "%8d  %s\n", bytes[crate], crate }' | sort -rn
