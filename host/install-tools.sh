#!/bin/sh
# Puts in place what the tests and checks use beyond Rust, gcc, make and openssl. What is there stays.
# With `check`: also the linters.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# Prebuilt tools for machines that cannot reach rustup's or GitHub's servers; absent elsewhere.
shared=$here/../../shared/tools

packages=
need() { command -v "$1" >/dev/null 2>&1 || packages="$packages $2"; }
need openssl openssl
need curl curl
need socat socat
need musl-gcc musl-tools
if [ "${1:-}" = check ]; then need shellcheck shellcheck; fi
if [ -n "$packages" ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "missing:$packages. Install them, on Debian by: sudo apt-get install$packages" >&2
    exit 1
  fi
  # shellcheck disable=SC2086 # a list of names
  { apt-get install -y --no-install-recommends $packages || { apt-get update && apt-get install -y --no-install-recommends $packages; }; } >&2
fi

target=x86_64-unknown-linux-musl
if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; then
  if [ -x "$shared/install-musl-target" ]; then "$shared/install-musl-target"; else rustup target add "$target"; fi
fi

if [ "${1:-}" = check ]; then
  if [ -x "$shared/install-dev-tools" ]; then "$shared/install-dev-tools"; fi
  for tool in cargo-deny cargo-audit; do
    command -v "$tool" >/dev/null 2>&1 || [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/$tool" ] || cargo install --locked "$tool"
  done
fi
