#!/bin/sh
# Prints the path of the public half of this user's operator key, which goes into an image; makes the key if there is
# none. Whoever has the private half can send secrets to the enclave: do not lose it, and do not share it.
set -eu
folder=${XDG_CONFIG_HOME:-$HOME/.config}/teemark
if [ ! -s "$folder/operator.pub" ]; then
  umask 077
  mkdir -p "$folder"
  if [ ! -f "$folder/operator.key" ]; then
    openssl genpkey -algorithm ed25519 -out "$folder/operator.key.new" >&2
    mv "$folder/operator.key.new" "$folder/operator.key"
    echo "made an operator key: $folder/operator.key. Only it can send secrets to images built here: do not lose it." >&2
  fi
  openssl pkey -in "$folder/operator.key" -pubout -outform DER -out "$folder/operator.der"
  # A SubjectPublicKeyInfo for Ed25519 has 44 bytes, and the last 32 are the key (RFC 8410, 4).
  if [ "$(wc -c <"$folder/operator.der")" != 44 ]; then
    echo "$folder/operator.key is not an Ed25519 key" >&2
    exit 1
  fi
  tail -c 32 "$folder/operator.der" | base64 >"$folder/operator.pub.new"
  rm "$folder/operator.der"
  mv "$folder/operator.pub.new" "$folder/operator.pub"
fi
echo "$folder/operator.pub"
