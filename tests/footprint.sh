#!/bin/sh
# What the daemon weighs: builds it as it goes into the image, prints the figures, and fails past the limits of
# SPECIFICATION.md.
set -eu
cd "$(dirname "$0")/.."

MOST_BYTES=2200000
MOST_RSS_KIB=2560
target=x86_64-unknown-linux-musl

cargo build --quiet --release --target "$target"
daemon=${CARGO_TARGET_DIR:-target}/$target/release/teemarkd

fail() { echo "footprint: $*" >&2; exit 1; }

if readelf --program-headers "$daemon" | grep -q INTERP; then fail "$daemon is not static"; fi
bytes=$(wc -c <"$daemon")

if cargo tree -p teemarkd -e normal --prefix none | grep -E '^(tokio|hyper|async-|openssl)'; then
  fail "the daemon depends on the crates above"
fi

dir=$(mktemp -d)
pid=
trap 'kill $pid 2>/dev/null || true; rm -rf "$dir"' EXIT
env -i TEEMARK_PUBLIC="unix:$dir/p" TEEMARK_ADMIN="unix:$dir/a" TEEMARK_SECRETS="unix:$dir/s" \
  TEEMARK_ENDPOINTS=allowed_endpoints.yaml TEEMARK_CERTS="$dir/certs" TEEMARK_HOSTS= "$daemon" 2>"$dir/log" &
pid=$!
tries=0
until grep -q 'not ready' "$dir/log"; do
  tries=$((tries + 1))
  [ "$tries" -lt 100 ] || { cat "$dir/log" >&2; fail "the daemon did not start"; }
  sleep 0.1
done
sleep 1
rss=$(awk '/^VmRSS/ {print $2}' "/proc/$pid/status")
threads=$(awk '/^Threads/ {print $2}' "/proc/$pid/status")
# Clock ticks of user and system time (proc(5), fields 14 and 15), as milliseconds.
ticks=$(awk '{print $14 + $15}' "/proc/$pid/stat")
cpu=$((ticks * 1000 / $(getconf CLK_TCK)))

echo "teemarkd: $bytes bytes stripped and static (limit $MOST_BYTES)"
echo "teemarkd: $rss KiB resident when idle (limit $MOST_RSS_KIB), $threads threads, $cpu ms of CPU since exec"
[ "$bytes" -le "$MOST_BYTES" ] || fail "too many bytes"
[ "$rss" -le "$MOST_RSS_KIB" ] || fail "too much memory"
