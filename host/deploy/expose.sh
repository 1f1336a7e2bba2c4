#!/bin/sh
# Makes the enclave's public and admin ports (vsock 3000 and 3001) available over TCP on the parent while the enclave
# runs: by `teemark expose`, one thread for all connections, or where teemark is not installed by socat, a process for
# each. Exits with 1 when the enclave ends, since the next one has another CID; teemark-expose.service restarts it.
set -eu
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)
# shellcheck source=SCRIPTDIR/enclave.sh
. "$here/enclave.sh"

# Whoever can reach the admin port can send secrets and read the enclave's state, hence 127.0.0.1.
public=${EXPOSE_PUBLIC-0.0.0.0:3000}
admin=${EXPOSE_ADMIN-127.0.0.1:3001}
if [ $# -gt 0 ] || [ -z "$public$admin" ]; then
  echo 'Usage: [EXPOSE_PUBLIC=0.0.0.0:3000] [EXPOSE_ADMIN=127.0.0.1:3001] expose.sh   (empty: not exposed)' >&2
  exit 2
fi

if teemark expose --help >/dev/null 2>&1; then forwarder=teemark; else need socat socat; forwarder=socat; fi
find_enclave
# If that process is unknown or cannot be seen (hidepid), only the listeners are watched.
[ -d "/proc/${enclave_process:-none}" ] || enclave_process=

listeners=
stop() {
  # shellcheck disable=SC2086 # a list of process numbers
  [ -z "$listeners" ] || kill $listeners 2>/dev/null || true
}
trap stop EXIT
trap 'exit 0' INT TERM

# A client that has closed its sending side still gets an answer that takes a minute. The limit, that of teemark expose too,
# bounds the parent's memory; it is above what the enclave accepts, so that the enclave chooses whom to turn away.
listen() { # name address:port vsock-port
  [ -n "$2" ] || return 0
  case $2 in
    *[!0-9A-Za-z.:-]* | *:*:* | *:*[!0-9]* | :* | *:) usable= ;;
    *:*) usable=1 ;;
    *) usable= ;;
  esac
  [ -n "$usable" ] || die "$1: $2 is not ADDRESS:PORT, such as 127.0.0.1:$3"
  socat -t 60 "TCP4-LISTEN:${2##*:},bind=${2%:*},fork,reuseaddr,backlog=256,max-children=1024" \
    "VSOCK-CONNECT:$ENCLAVE_CID:$3" &
  listeners="$listeners $!"
  echo "$1: http://$2 leads to vsock:$ENCLAVE_CID:$3"
}
if [ "$forwarder" = teemark ]; then
  teemark expose --enclave "$ENCLAVE_CID" --public "$public" --admin "$admin" &
  listeners=$!
else
  listen public "$public" 3000
  listen admin "$admin" 3001
fi

while sleep 1; do
  for listener in $listeners; do
    kill -0 "$listener" 2>/dev/null || die "a listener has ended; see the message above"
  done
  [ -z "$enclave_process" ] || [ -d "/proc/$enclave_process" ] || die "the enclave, CID $ENCLAVE_CID, has ended"
done
