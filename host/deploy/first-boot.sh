#!/bin/sh
# The first start of an image on an instance: starts it in debug mode under a name of its own, reads its console from the
# first line on, asks it for its health and an attestation document, ends it, and writes all that to one file, which you
# can send to whoever helps you. docs/HARDWARE.md says what to try next if it does not start. Exits with 1 if a check failed.
#
# Nothing secret goes into the file: no settings of the parent, no environment, no instance metadata. Instance IDs are cut
# out. The image needs no secrets for this, so give it none.
set -eu
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)
# shellcheck source=SCRIPTDIR/enclave.sh
. "$here/enclave.sh"

if [ $# -gt 1 ] || [ "${1:-}" = --help ]; then
  cat >&2 <<'USAGE'
Usage: first-boot.sh [REPORT]    (by default first-boot-report.txt)

Environment variables say what to start:
  ENCLAVE_EIF     the image, best a debug image (out/teemark-debug.eif)
  ENCLAVE_MEMORY  in MiB (512)
  ENCLAVE_CPUS    how many (2)
  ENCLAVE_CID     its CID (16); the console is vsock port 10000 + CID of CID 0
  WAIT            seconds to wait for its HTTP port after the heartbeat (60)
USAGE
  [ "${1:-}" = --help ] || exit 2
  exit
fi
report=${1:-first-boot-report.txt}
eif=${ENCLAVE_EIF:-$here/../../out/teemark-debug.eif}
cid=${ENCLAVE_CID:-16}
name=teemark-first-boot
device=${NITRO_DEVICE:-/dev/nitro_enclaves}
# What is kept of a console or a log that does not end.
most=1000000

need socat socat
ENCLAVE_CID=
describe_enclaves
[ -r "$eif" ] || die "$eif cannot be read; make image DEBUG=1 builds it, ENCLAVE_EIF names another"
taken=$(printf '%s\n' "$enclaves" | jq -r --arg name "$name" --argjson cid "$cid" \
  'map(select(.EnclaveName == $name or .EnclaveCID == $cid) | "\(.EnclaveName), CID \(.EnclaveCID)") | join("; ")') ||
  die "ENCLAVE_CID=$cid is not a number"
[ -z "$taken" ] || die "it would clash with a running enclave: $taken. End that one, or set ENCLAVE_CID"

umask 077
work=$(mktemp -d)
listener=
started=
finish() {
  [ -z "$listener" ] || kill "$listener" 2>/dev/null || true
  [ -z "$started" ] || nitro-cli terminate-enclave --enclave-name "$name" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

section() { printf '\n=== %s\n' "$*" >>"$work/report"; }
# Adds what a command says to the report, and sets ended to its status.
note() {
  ended=0
  "$@" >"$work/said" 2>&1 || ended=$?
  {
    printf '$ %s\n' "$*"
    head -c "$most" "$work/said"
    [ "$ended" = 0 ] || echo "(status $ended)"
  } >>"$work/report"
}
failed=
check() { # what words status
  word=ok
  [ "$3" = 0 ] || word=FAILED failed=1
  printf '%-6s  %s: %s\n' "$word" "$1" "$2" | tee -a "$work/checks"
}
status() { "$@" >/dev/null 2>&1 && echo 0 || echo 1; }

section the instance
for file in /sys/devices/virtual/dmi/id/product_name /etc/os-release /etc/nitro_enclaves/allocator.yaml; do note cat "$file"; done
note uname -srvm
note grep -m 1 'model name' /proc/cpuinfo
note grep -E '^(MemTotal|MemAvailable|HugePages_|Hugepagesize)' /proc/meminfo
note ls -l "$device" /dev/vsock
note nitro-cli --version
note nitro-cli describe-enclaves
check 'enclaves are enabled' "$device" "$(status test -e "$device")"

section the image
note sha256sum "$eif"
note nitro-cli describe-eif --eif-path "$eif"
# Without its warnings.
nitro-cli describe-eif --eif-path "$eif" >"$work/said" 2>/dev/null || true
check 'the image is whole' 'nitro-cli describe-eif says CheckCRC' "$(status jq -e .CheckCRC "$work/said")"

section the start
# Reads the console from before the start on, since nitro-cli attaches only after the heartbeat.
listen() {
  socat=
  trap '[ -z "$socat" ] || kill "$socat"; exit' TERM
  while :; do
    socat -u "VSOCK-CONNECT:0:$((10000 + cid))" "OPEN:$work/console,creat,append" &
    socat=$!
    ! wait "$socat" || return 0
    sleep 0.1
  done
}
listen >/dev/null 2>&1 &
listener=$!
begin=$(date +%s)
started=1
note nitro-cli run-enclave --enclave-name "$name" --enclave-cid "$cid" --eif-path "$eif" --debug-mode \
  --memory "${ENCLAVE_MEMORY:-512}" --cpu-count "${ENCLAVE_CPUS:-2}"
heartbeat=$ended
check 'the heartbeat' "nitro-cli run-enclave ended after $(($(date +%s) - begin)) s" "$heartbeat"
note nitro-cli describe-enclaves

# Asks one of the enclave's HTTP ports.
get() { # port path
  printf '> GET %s at vsock:%s:%s\n' "$2" "$cid" "$1" >"$work/answer"
  printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$2" |
    socat -t 15 - "VSOCK-CONNECT:$cid:$1" 2>&1 | head -c "$most" | tr -d '\r' >>"$work/answer" || true
}
# Adds the last answer to the report.
keep() {
  cat "$work/answer"
  echo
} >>"$work/report"
answered() { grep -qE "^HTTP/1.1 $1 " "$work/answer"; }
if [ "$heartbeat" = 0 ]; then
  section its HTTP ports
  begin=$(date +%s)
  get 3000 /health_check
  until answered 200 || [ $(($(date +%s) - begin)) -ge "${WAIT:-60}" ]; do
    sleep 1
    get 3000 /health_check
  done
  keep
  check 'the daemon answers' '/health_check' "$(status answered 200)"
  get 3000 /get_attestation
  keep
  check 'it attests itself' '/get_attestation' "$(status answered 200)"
  for place in 3000:/ready 3001:/admin/status 3001:/metrics; do
    get "${place%%:*}" "${place#*:}"
    keep
  done
fi

section the console
: >>"$work/console"
# Its beginning and its end: a panic comes last.
length=$(wc -c <"$work/console")
{
  head -c "$((most / 2))" "$work/console"
  if [ "$length" -gt "$most" ]; then printf '\n… %s bytes are left out …\n' "$((length - most))"; fi
  tail -c "+$((most / 2 + 1))" "$work/console" | tail -c "$((most / 2))"
} | tr -d '\r' >>"$work/report"
check 'the console' "$(wc -l <"$work/console") lines" "$(status test -s "$work/console")"
section 'logs of nitro-cli'
for log in /var/log/nitro_enclaves/*.log; do [ ! -r "$log" ] || note tail -n 100 "$log"; done
section 'the kernel of the instance'
{ dmesg 2>/dev/null || true; } | grep -iE 'nitro|enclave|vsock' | tail -n 100 >>"$work/report"

{
  echo "teemark's first start on $(cat /sys/devices/virtual/dmi/id/product_name 2>/dev/null || uname -m), $(date -u +%Y-%m-%dT%H:%M:%SZ)"
  cat "$work/checks" "$work/report"
} | sed -E 's/i-[0-9a-f]{8,17}/i-…/g' >"$report"
# For whoever ran sudo, so that they can send it.
[ -z "${SUDO_UID:-}" ] || chown "$SUDO_UID:${SUDO_GID:-}" "$report" || true
echo "the report is in $report; docs/HARDWARE.md says what to try next"
[ -z "$failed" ]
