#!/bin/sh
# Builds two images for each architecture and checks that they are the same bytes: their programs are built from two copies
# of the source in two folders, with cargo's folder in two places, and the second for a caller whose environment asks for
# other compilers, options and profiles. Both take the kernel from the cache; docs/IMAGE.md compares two builds of it.
set -eu
root=$(CDPATH='' cd "$(dirname "$0")/.." && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
copy=$dir/a/folder/with/a/longer/name
mkdir -p "$copy" "$dir/cargo"

cd "$root"
# What git would clone, plus files that are not committed yet.
git ls-files --cached --others --exclude-standard -z | tar -c --null --files-from=- | tar -x -C "$copy"
# The crates are downloaded once; the second build sees them under another path.
ln -s "${CARGO_HOME:-$HOME/.cargo}/registry" "$dir/cargo/registry"
path=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
other='CC=clang CFLAGS=-O0 TARGET_CFLAGS=-g RUSTFLAGS=-Copt-level=1 CARGO_ENCODED_RUSTFLAGS=-Copt-level=1 CDPATH=/:.
  CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=2 CARGO_BUILD_RUSTFLAGS=-Cdebuginfo=2'
for arch in x86_64 aarch64; do
  image/build.sh --arch "$arch" --output "$dir/first" >/dev/null
  # shellcheck disable=SC2086 # one variable a word
  programs=$(env $other CARGO_HOME="$dir/cargo" PATH="$path" "$copy/image/programs.sh" --arch "$arch")
  "${CARGO_TARGET_DIR:-target}/debug/teemark-image" build --kernel "$(image/kernel/build.sh --arch "$arch")"/*Image \
    --daemon "$(echo "$programs" | sed -n 1p)" --init "$(echo "$programs" | sed -n 2p)" \
    --endpoints "$copy/allowed_endpoints.yaml" --environment "$copy/image/teemark.env" \
    --operator "$(image/operator.sh)" --output "$dir/second" >/dev/null

  for file in teemark.eif teemark.pcrs teemark.json; do
    if ! cmp "$dir/first/$file" "$dir/second/$file"; then
      echo "reproducible: $file for $arch differs between two builds of the same source" >&2
      exit 1
    fi
  done
  echo "reproducible: for $arch two builds in two folders are the same $(wc -c <"$dir/first/teemark.eif") bytes:"
  cat "$dir/first/teemark.pcrs"
done
