#!/bin/sh
# The handshake by socat: sends a bundle to the enclave's vsock port 7777, once it listens there, and prints the answer.
# Exits with 1 if the enclave refuses the bundle or does not answer. certs/README.md shows how to write such a file; where
# teemark is installed, `teemark secrets` makes and sends it in one step.
set -eu
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)
# shellcheck source=SCRIPTDIR/enclave.sh
. "$here/enclave.sh"

if [ $# != 1 ] || [ "$1" = --help ]; then
  echo 'Usage: [WAIT=60] send-secrets.sh FILE   (-: standard input; WAIT: seconds to wait for the enclave)' >&2
  exit 2
fi
wait=${WAIT:-60}

need socat socat
need jq jq
work=$(mktemp -d)
reason=$work/reason
trap 'rm -rf "$work"' EXIT
# Without these, a signal would not run that trap in every shell.
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
# A pipe cannot be read again for a second attempt. No part of a bundle is ever printed.
bundle=$1
if [ "$1" = - ]; then
  bundle=$work/bundle
  cat >"$bundle"
elif [ ! -f "$1" ]; then
  bundle=$work/bundle
  cat -- "$1" >"$bundle" || die "$1 cannot be read"
fi
[ -r "$bundle" ] || die "$1 cannot be read"
# One that is sealed in version 2 is a line of JSON, and then bytes.
head -c 100 -- "$bundle" | tr -d '\000' | head -n 1 | grep -q '^{"sealed_bundle_v2":' ||
  jq -es 'length == 1 and (.[0] | type == "object")' <"$bundle" >/dev/null 2>&1 || die "$1 is not one JSON object"
find_enclave

# The enclave answers within 10 s; socat's own half second would be too short for a busy one.
attempt() {
  answer=$(socat -t 15 - "VSOCK-CONNECT:$ENCLAVE_CID:7777" <"$bundle" 2>"$reason") || return 1
  [ -n "$answer" ]
}
told=
start=$(date +%s)
until attempt; do
  [ $(($(date +%s) - start)) -lt "$wait" ] ||
    die "CID $ENCLAVE_CID did not answer on port 7777 within $wait s: $(tail -n 1 "$reason")"
  [ -n "$told" ] || echo "waiting until the enclave listens on vsock:$ENCLAVE_CID:7777" >&2
  told=1
  sleep 1
done

printf '%s\n' "$answer"
case $(printf '%s\n' "$answer" | jq .ok 2>/dev/null) in
  true) ;;
  false)
    # The answer to an earlier attempt may have been lost.
    case $(printf '%s\n' "$answer" | jq -r .field) in
      sealed_bundle.counter | sealed_bundle_v2.counter)
        die "refused; it may be in force already: teemark attest prints the counter and hash of the bundle that is"
        ;;
    esac
    die "refused"
    ;;
  *) die "what answers on vsock:$ENCLAVE_CID:7777 is not teemarkd" ;;
esac
missing=$(printf '%s\n' "$answer" | jq -r '.missing // [] | join(", ")')
[ -z "$missing" ] || echo "accepted, but the enclave is not ready: it still needs $missing" >&2
