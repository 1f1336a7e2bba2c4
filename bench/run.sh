#!/bin/sh
# Builds teemarkd as it is shipped and what it is compared with, and compares them: `make bench`. It takes a quarter of
# an hour, and leaves the tables in docs/PERFORMANCE.md and every figure in out/bench.
#
#     FULL=1              the whole grid of sizes, routes, clients, connections and contents; more than an hour
#     TEEMARKD='PATH …'   other builds of teemarkd beside it, each PATH or teemarkd:NAME=PATH; as a trial
#
# Trials leave the documents alone: their tables and pictures are in out/bench.
#
#     BENCH_SECONDS=0.1   the time of one measurement
#     BENCH_ROUNDS=1      how often each is made
#     BENCH_CELL=NAME     one cell of the part cells, such as "64 KiB raw, text"
#     BENCH_PARTS=LIST    of floors,cells,trust,log,forwarding,memory,system-calls; the others as they were; none: tables only
set -eu
CDPATH='' cd "$(dirname "$0")/.."
host/install-tools.sh

missing=
for tool in strace python3; do
  command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
done
if [ -n "$missing" ]; then
  # shellcheck disable=SC2086 # a list of names
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1 ||
    ! apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends $missing >&2; then
    echo "bench: goes on without$missing" >&2
  fi
fi

musl=x86_64-unknown-linux-musl
target=$PWD/bench/target
build() { cargo build --quiet --locked --manifest-path bench/Cargo.toml --target-dir "$target" "$@"; }
echo 'building' >&2
daemon=$(image/programs.sh | sed -n 1p)
cargo build --quiet --locked --release --target-dir target -p teemark
build --profile driver -p teemark-bench
build --release -p async-peer
build --release -p async-peer --target "$musl"

set -- "teemarkd=$daemon"
for other in ${TEEMARKD:-}; do
  case $other in
    teemarkd:*=*) set -- "$@" "$other" ;;
    *) set -- "$@" "teemarkd:other=$other" ;;
  esac
done
COMMIT=$(git describe --always --dirty 2>/dev/null || true)
export COMMIT
exec "$target/driver/teemark-bench" "$@" "teemark=target/release/teemark" \
  "async-pooled=$target/release/async-peer" \
  "async-pooled-static=$target/$musl/release/async-peer" \
  "async-as-deployed=$target/release/async-peer"
