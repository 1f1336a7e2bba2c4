#!/bin/sh
# Brings the enclave's public and admin port (vsock 3000 and 3001) to TCP on the parent, for as long as the enclave
# runs. It ends with 1 when the enclave does, since the next one has another CID; teemark-expose.service starts it anew.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=SCRIPTDIR/enclave.sh
. "$here/enclave.sh"

# The admin port takes secrets and tells the enclave's state to whoever reaches it, hence 127.0.0.1.
public=${EXPOSE_PUBLIC-0.0.0.0:3000}
admin=${EXPOSE_ADMIN-127.0.0.1:3001}
if [ $# -gt 0 ] || [ -z "$public$admin" ]; then
  echo 'Usage: [EXPOSE_PUBLIC=0.0.0.0:3000] [EXPOSE_ADMIN=127.0.0.1:3001] expose.sh   (empty: not exposed)' >&2
  exit 2
fi

need socat socat
find_enclave
# Where that process is not known or cannot be seen (hidepid), the listeners alone are watched.
[ -d "/proc/${enclave_process:-none}" ] || enclave_process=

listeners=
stop() {
  # shellcheck disable=SC2086 # a list of process numbers
  [ -z "$listeners" ] || kill $listeners 2>/dev/null || true
}
trap stop EXIT
trap 'exit 0' INT TERM

# A process a connection. A client that has closed its sending side still gets an answer that takes a minute. The limit
# bounds the parent's memory, and is above what the enclave takes, so that the enclave chooses whom to turn away.
listen() { # name address:port vsock-port
  [ -n "$2" ] || return 0
  case $2 in
    *[!0-9A-Za-z.:-]* | *:*:* | *:*[!0-9]* | :* | *:) usable= ;;
    *:*) usable=1 ;;
    *) usable= ;;
  esac
  [ -n "$usable" ] || die "$1: $2 is not ADDRESS:PORT, as 127.0.0.1:$3"
  socat -t 60 "TCP4-LISTEN:${2##*:},bind=${2%:*},fork,reuseaddr,backlog=256,max-children=1024" \
    "VSOCK-CONNECT:$ENCLAVE_CID:$3" &
  listeners="$listeners $!"
  echo "$1: http://$2 leads to vsock:$ENCLAVE_CID:$3"
}
listen public "$public" 3000
listen admin "$admin" 3001

while sleep 1; do
  for listener in $listeners; do
    kill -0 "$listener" 2>/dev/null || die "a listener has ended; socat's reason stands above"
  done
  [ -z "$enclave_process" ] || [ -d "/proc/$enclave_process" ] || die "the enclave, CID $ENCLAVE_CID, has ended"
done
