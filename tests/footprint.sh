#!/bin/sh
# What the daemon weighs: builds it as it goes into the image, prints the figures, and fails past the limits of
# SPECIFICATION.md.
set -eu
CDPATH='' cd "$(dirname "$0")/.."

MOST_BYTES=2900000
MOST_RSS_KIB=2560
MOST_INSTRUCTIONS=1500000

daemon=$(image/programs.sh | sed -n 1p)

fail() { echo "footprint: $*" >&2; exit 1; }

if readelf --program-headers "$daemon" | grep -q INTERP; then fail "$daemon is not static"; fi
bytes=$(wc -c <"$daemon")

if cargo tree -p teemarkd -e normal --prefix none | grep -E '^(tokio|hyper|async-|openssl)'; then
  fail "the daemon depends on the crates above"
fi

dir=$(mktemp -d)
pid=
trap 'kill $pid 2>/dev/null || true; rm -rf "$dir"' EXIT

start() { # DIR COMMAND...: starts the daemon by that command, until it waits for the handshake
  own=$1
  shift
  mkdir "$own"
  env -i PATH="$PATH" TEEMARK_PUBLIC="unix:$own/p" TEEMARK_ADMIN="unix:$own/a" TEEMARK_SECRETS="unix:$own/s" \
    TEEMARK_ENDPOINTS=allowed_endpoints.yaml TEEMARK_CERTS="$own/certs" TEEMARK_HOSTS= "$@" 2>"$own/log" &
  pid=$!
  tries=0
  until grep -q 'not ready' "$own/log"; do
    tries=$((tries + 1))
    [ "$tries" -lt 1200 ] || { cat "$own/log" >&2; fail "the daemon did not start"; }
    sleep 0.1
  done
}

stop() {
  kill "$pid"
  wait "$pid" || true
  pid=
}

start "$dir/native" "$daemon"
sleep 1
rss=$(awk '/^VmRSS/ {print $2}' "/proc/$pid/status")
threads=$(awk '/^Threads/ {print $2}' "/proc/$pid/status")
# Time on a processor since exec, of all threads (the kernel's Documentation/scheduler/sched-stats.rst; nanoseconds).
cpu=$(cat "/proc/$pid/task/"*/schedstat | awk '{ns += $1} END {print int(ns / 1000)}')
stop
# Instructions do not depend on what else this machine does, as the time above does.
start "$dir/counted" valgrind --tool=callgrind --callgrind-out-file=/dev/null "$daemon"
stop
instructions=$(sed -n 's/^==.*Collected : //p' "$dir/counted/log")

echo "teemarkd: $bytes bytes stripped and static (limit $MOST_BYTES)"
echo "teemarkd: $rss KiB resident when idle (limit $MOST_RSS_KIB), $threads threads"
echo "teemarkd: $instructions instructions from exec to its end with nothing to do (limit $MOST_INSTRUCTIONS); $cpu microseconds of CPU"
[ "$bytes" -le "$MOST_BYTES" ] || fail "too many bytes"
[ "$rss" -le "$MOST_RSS_KIB" ] || fail "too much memory"
[ "$instructions" -le "$MOST_INSTRUCTIONS" ] || fail "too many instructions"
