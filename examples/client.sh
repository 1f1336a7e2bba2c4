#!/bin/sh
# Has an encrypted file decrypted and marked, and verifies the enclave's signature on the answer, as docs/FORMATS.md
# describes, with only curl, openssl and coreutils. examples/README.md says how to try it.
#
#     examples/client.sh ENDPOINT IDENTITY FILE FILE_ID USER_ID GRANT OUTPUT
#
# IDENTITY is the enclave's identity key in hex, from a verified attestation document; GRANT is a file with a grant that
# names no reply key. The answer comes in the clear: the parent instance can read it, but cannot alter it.
set -eu
[ $# = 7 ] || { sed -n '5p' "$0" >&2; exit 2; }
endpoint=$1 identity=$2 file=$3 file_id=$4 user_id=$5 grant=$6 output=$7
fail() { echo "client.sh: $*" >&2; exit 1; }
for id in "$file_id" "$user_id"; do
  case $id in *[!A-Za-z0-9._~-]*) fail "$id: this example does not percent-encode ids" ;; esac
  [ ${#id} -lt 128 ] || fail "$id: this example takes ids of at most 127 bytes"
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

curl -sS -D "$work/head" -o "$work/body" -H "Authorization: Bearer $(cat "$grant")" --data-binary "@$file" \
  "$endpoint/files/$file_id/decrypt?user_id=$user_id"
field() { tr -d '\r' <"$work/head" | sed -n "s/^$1: //Ip" | tail -n 1; }
grep -q '^HTTP/1.1 200 ' "$work/head" || fail "refused: $(cat "$work/body")"
[ "$(field Teemark-Sealed)" != true ] || fail "the answer is sealed, although that was not asked for"
[ "$(field Teemark-Watermarked)" = true ] || fail "the file is not marked"
at=$(field Teemark-Timestamp)
case $at in '' | *[!0-9]*) fail "the answer has no timestamp" ;; esac
age=$(($(date +%s) - at / 1000))
case ${age#-} in [0-9] | [0-9][0-9] | [12][0-9][0-9]) ;; *) fail "the answer was not signed in the last 300 seconds" ;; esac

# The signed bytes, in BCS, made here in hex: intent 0, the time, both hashes, both ids, watermarked. Each hash and each id
# is preceded by its length.
bytes() { printf '%s' "$1" | tr a-f A-F | basenc --base16 -d; }
little_endian() { i=0; while [ $i -lt 8 ]; do printf '%02x' $(($1 >> 8 * i & 255)); i=$((i + 1)); done; }
hash() { printf '20%s' "$(openssl dgst -sha256 -r <"$1" | cut -c 1-64)"; }
id() { printf '%02x' ${#1}; printf '%s' "$1" | basenc --base16 -w 0; }
bytes "00$(little_endian "$at")$(hash "$work/body")$(hash "$file")$(id "$file_id")$(id "$user_id")01" >"$work/statement"

field Teemark-Signature | base64 -d >"$work/signature"
bytes "302a300506032b6570032100$identity" >"$work/identity.der" # an Ed25519 key's SubjectPublicKeyInfo (RFC 8410)
openssl pkeyutl -verify -pubin -keyform DER -inkey "$work/identity.der" -rawin -in "$work/statement" \
  -sigfile "$work/signature" >"$work/verdict" 2>&1 || fail "the signature is not this enclave's: $(cat "$work/verdict")"
umask 077
cat "$work/body" >"$output"
echo "$output: marked for $user_id, signed by the enclave"
