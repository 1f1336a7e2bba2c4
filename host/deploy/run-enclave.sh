#!/bin/sh
# Starts the enclave on the parent EC2 instance, unless it is already running. `make run-enclave` and
# teemark-enclave.service call it. README.md explains nitro-cli's errors.
set -eu
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)
# shellcheck source=SCRIPTDIR/enclave.sh
. "$here/enclave.sh"

if [ $# -gt 0 ]; then
  cat <<'USAGE'
Usage: run-enclave.sh

Environment variables say what to run:
  ENCLAVE_EIF     the image (out/teemark.eif)
  ENCLAVE_NAME    its name in nitro-cli (teemark)
  ENCLAVE_MEMORY  in MiB (512), at most memory_mib of /etc/nitro_enclaves/allocator.yaml
  ENCLAVE_CPUS    how many (2), at most cpu_count there
  ENCLAVE_DEBUG   1: its console can be read, and the PCRs in its attestation documents are zeros
USAGE
  [ "$1" = --help ] || exit 2
  exit
fi

eif=${ENCLAVE_EIF:-$here/../../out/teemark.eif}
# The tests set another path, as they have no such device.
device=${NITRO_DEVICE:-/dev/nitro_enclaves}

describe_enclaves
[ -e "$device" ] || die "$device is not there: launch the instance with enclaves enabled (EnclaveOptions); \
on other machines, make run-vm boots the image in a virtual machine"
[ -r "$eif" ] || die "$eif cannot be read; make image builds it"
[ "$(ours length)" = 0 ] ||
  die "it runs already: $(ours '.[0] | "\(.EnclaveName), CID \(.EnclaveCID), \(.EnclaveID)"'). \
To stop it: systemctl stop teemark-enclave, or nitro-cli terminate-enclave --enclave-name $ENCLAVE_NAME"

set -- --enclave-name "$ENCLAVE_NAME" --eif-path "$eif" \
  --memory "${ENCLAVE_MEMORY:-512}" --cpu-count "${ENCLAVE_CPUS:-2}"
[ "${ENCLAVE_DEBUG:-0}" != 1 ] || set -- "$@" --debug-mode
# nitro-cli writes its messages to stderr, and the description of the enclave to stdout.
started=$(nitro-cli run-enclave "$@") || die "nitro-cli did not start $eif; host/deploy/README.md explains its errors"

printf '%s\n' "$started" | jq -r '"enclave \(.EnclaveName) runs: CID \(.EnclaveCID), \(.MemoryMiB) MiB, CPUs \(.CPUIDs)"'
cat <<NEXT
Next, unless services do it:
  $here/send-secrets.sh mtls_certs.json    the handshake
  $here/expose.sh                          its HTTP ports over TCP
  curl http://127.0.0.1:3000/ready
NEXT
[ "${ENCLAVE_DEBUG:-0}" != 1 ] || echo "  nitro-cli console --enclave-name $ENCLAVE_NAME"
