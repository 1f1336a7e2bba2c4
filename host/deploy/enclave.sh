# shellcheck shell=sh
# Shared by the scripts of this folder, which source it: finds the enclave that they act on.
#
# It is the running enclave named ENCLAVE_NAME (teemark). If ENCLAVE_CID is set, it is that one, and nitro-cli is not asked.
ENCLAVE_NAME=${ENCLAVE_NAME:-teemark}
enclave_process=

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

need() { # program package
  command -v "$1" >/dev/null 2>&1 ||
    die "$1 is not here. Run this on the parent EC2 instance, after: sudo dnf install $2"
}

# Sets enclaves to the running ones, as nitro-cli's JSON.
describe_enclaves() {
  need nitro-cli aws-nitro-enclaves-cli
  need jq jq
  enclaves=$(nitro-cli describe-enclaves) || die "nitro-cli describe-enclaves failed; is this user root or in group ne?"
  enclaves=$(printf '%s\n' "$enclaves" | jq -c 'map(select(.State == "RUNNING"))') ||
    die "nitro-cli describe-enclaves did not print a list of enclaves"
}

# Applies a jq expression to the described enclaves that have our name.
ours() {
  printf '%s\n' "$enclaves" | jq -r --arg name "$ENCLAVE_NAME" "map(select(.EnclaveName == \$name)) | $1"
}

# Sets ENCLAVE_CID, and enclave_process to the process that lives as long as the enclave does (empty: unknown).
find_enclave() {
  case ${ENCLAVE_CID:-} in
    '') ;;
    *[!0-9]*) die "ENCLAVE_CID=$ENCLAVE_CID is not a number" ;;
    *) return ;;
  esac
  describe_enclaves
  case $(ours length) in
    1)
      ENCLAVE_CID=$(ours '.[0].EnclaveCID')
      # shellcheck disable=SC2034 # expose.sh reads it
      enclave_process=$(ours '.[0].ProcessID // empty')
      ;;
    0)
      others=$(printf '%s\n' "$enclaves" | jq -r 'map("\(.EnclaveName) (CID \(.EnclaveCID))") | join(", ")')
      [ -z "$others" ] ||
        die "no enclave named $ENCLAVE_NAME is running; there are $others. Set ENCLAVE_NAME or ENCLAVE_CID"
      die "no enclave is running; start it: systemctl start teemark-enclave, or make run-enclave"
      ;;
    *) die "several enclaves are named $ENCLAVE_NAME; set ENCLAVE_CID to one of $(ours 'map(.EnclaveCID) | join(", ")')" ;;
  esac
}
