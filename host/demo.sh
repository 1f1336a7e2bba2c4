#!/bin/sh
# Does the main job on real input, step by step, on this machine: with real certificates, real mutual TLS and the daemon
# that goes into the enclave, and with everything sealed as in an image; at the end, briefly, the plain way.
# `make demo` runs it; `make run` runs it with --keep and leaves the programs running until Ctrl-C.
set -eu
CDPATH='' cd "$(dirname "$0")/.."
keep=${1:-}
bin=${CARGO_TARGET_DIR:-target}/debug
out=out/demo
rm -rf "$out"
mkdir -p "$out"
# A separate folder: the path of a Unix socket may have only 107 bytes, and this folder's may be long.
sockets=$(mktemp -d)
pids=
service=
stop() {
  pids="$service $pids"
  # shellcheck disable=SC2086 # a list of process numbers
  [ "$pids" = " " ] || { kill $pids 2>/dev/null || true; wait 2>/dev/null || true; }
  rm -rf "$sockets"
}
trap stop EXIT
trap 'exit 130' INT TERM

step=0
say() { step=$((step + 1)); printf '\n%2d. %s\n' "$step" "$*"; }
fail() { printf '\ndemo: %s\n' "$*" >&2; tail -n 20 "$out"/*.log >&2; exit 1; }
await() { # file pattern what
  tries=0
  until grep -q "$2" "$1" 2>/dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || fail "$3 did not start"
    sleep 0.1
  done
}
start_service() { # port options...
  if [ -n "$service" ]; then
    kill "$service"
    wait "$service" || fail "the watermark service did not stop as it should"
    service=
  fi
  rm -f "$out/service.out"
  wanted=$1
  shift
  "$bin/watermark-service" serve --listen "127.0.0.1:$wanted" --cert "$out/certs/server.crt" \
    --key "$out/certs/server.key" --client-ca "$out/certs/ca.crt" "$@" >"$out/service.out" 2>>"$out/service.log" &
  service=$!
  await "$out/service.out" 'listening on' 'the watermark service'
  port=$(sed -n 's/.*listening on https:.*:\([0-9]*\)$/\1/p' "$out/service.out")
}
start_daemon() { # name port NAME=value...
  name=$1
  port_wanted=$2
  shift 2
  admin="unix:$sockets/$name-admin"
  [ "$keep$name" != --keepteemarkd ] || admin=tcp:127.0.0.1:3001
  env "$@" TEEMARKD="$bin/teemarkd" TEEMARK_EGRESS=direct TEEMARK_ENDPOINTS="$out/allowed_endpoints.yaml" \
    TEEMARK_CERTS="$out/certs-of-$name" TEEMARK_PUBLIC="tcp:127.0.0.1:$port_wanted" \
    TEEMARK_ADMIN="$admin" TEEMARK_SECRETS="unix:$sockets/$name" ./run.sh 2>"$out/$name.log" &
  daemon=$!
  pids="$pids $daemon"
  await "$out/$name.log" 'waiting for the handshake' 'teemarkd'
  public=$(sed -n 's/.*public: listening on tcp:\(.*\)$/\1/p' "$out/$name.log")
}
grant() { # file-id encrypted-file
  "$bin/teemark" grant --key "$out/grants.key" --file-id "$1" --user-id user-4711 --audience demo \
    --content "$2" --reply-key "$(cat "$out/reply.pub")" >"$out/grant"
}
decrypt() { # input output file-id options...
  input=$1
  output=$2
  file_id=$3
  shift 3
  "$bin/teemark" decrypt "$input" --endpoint "http://$public" --file-id "$file_id" --user-id user-4711 \
    --output "$output" "$@"
}
refused() { # log what, then a command that has to be refused
  log=$1
  what=$2
  shift 2
  if "$@" >"$log" 2>&1; then fail "$what was not refused"; fi
  grep -E '^(refused|error)' "$log" | sed 's/^/    /'
}

say "Certificates: a CA, the service's, the client's (certs/make-certs.sh, with the checklist's openssl commands)"
certs/make-certs.sh "$out/certs" >"$out/certs.log" 2>&1 || fail "no certificates"

say "The watermark service starts; it requires a client certificate from that CA"
start_service 0

say "Four keys: an operator's, whose public half goes into an image; one to sign grants; a user's; one for the files"
for use in operator grants reply; do
  "$bin/teemark" keygen --for "$use" --output "$out/$use.key" --public-output "$out/$use.pub" || fail "no $use key"
done
"$bin/teemark" keygen --aad --id demo --output "$out/keys.json" || fail "no key"

say "teemarkd starts by run.sh, with the settings of an image: it accepts only sealed secrets, and requires grants"
printf 'endpoints:\n  - localhost:%s\n' "$port" >"$out/allowed_endpoints.yaml"
http_port=0
[ "$keep" != --keep ] || http_port=3000
start_daemon teemarkd "$http_port" "TEEMARK_OPERATOR_KEYS=$(cat "$out/operator.pub")" TEEMARK_FLEET=demo

say "Attestation: which keys does it have, and which code? An enclave proves both by AWS' root (--pcrs out/teemark.pcrs);"
echo "    on this machine nobody measures the code, and --development believes the daemon itself:"
"$bin/teemark" attest --endpoint "http://$public" --development 2>&1 | sed 's/^/    /'

say "The operator seals the secrets to that daemon and signs them. Nobody who relays the file can read or change it"
"$bin/teemark" secrets --client-cert "$out/certs/client.crt" --client-key "$out/certs/client.key" \
  --ca "$out/certs/ecs-ca.crt" --endpoint "https://localhost:$port" --keys "$out/keys.json" --grant-keys "$out/grants.pub" \
  --seal --attested "http://$public" --development --operator-key "$out/operator.key" --output "$out/sealed.bundle" \
  2>/dev/null || fail "not sealed"
cut -c 1-100 "$out/sealed.bundle" | head -n 1 | sed 's/^/    /; s/$/ .../'
"$bin/teemark" secrets --bundle "$out/sealed.bundle" --send "unix:$sockets/teemarkd" || fail "handshake refused"

say "The same bundle, sent a second time, is refused, and so is one that is not sealed"
refused "$out/replay.log" "a replayed bundle" "$bin/teemark" secrets --bundle "$out/sealed.bundle" --send "unix:$sockets/teemarkd"
refused "$out/unsealed.log" "a bundle in the clear" "$bin/teemark" secrets --keys "$out/keys.json" --plain \
  --send "unix:$sockets/teemarkd"

say "A picture and a text are encrypted, as by Zing's clients"
"$bin/watermark-service" sample "$out/original.png"
cp LICENSE "$out/original.txt"
for file in original.png original.txt; do
  "$bin/teemark" encrypt "$out/$file" --keys "$out/keys.json" --file-id "$file"
done

say "teemarkd decrypts both for user-4711, who has a grant for each, and has them marked. The answers are sealed to the"
echo "    user's key and signed by the key that was attested"
for file in original.png original.txt; do
  grant "$file" "$out/$file.enc"
  decrypt "$out/$file.enc" "$out/marked.${file##*.}" "$file" --grant "$out/grant" --seal --reply-key "$out/reply.key" \
    --verify --development 2>"$out/decrypt.log" || { cat "$out/decrypt.log" >&2; fail "$file was not decrypted"; }
done

say "The marks, read back from the marked files"
for file in marked.png marked.txt; do
  mark=$("$bin/watermark-service" extract "$out/$file") || fail "no mark in $file"
  echo "    $file: $mark"
  case $mark in *user-4711*) ;; *) fail "the mark in $file is another user's" ;; esac
done
"$bin/watermark-service" difference "$out/original.png" "$out/marked.png" "$out/difference.png" --gain 64

say "Without a grant, with a used one, and with one for another file, the request is refused"
refused "$out/no-grant.log" "a request without a grant" decrypt "$out/original.txt.enc" "$out/none" original.txt
refused "$out/used.log" "a used grant" decrypt "$out/original.txt.enc" "$out/none" original.txt --grant "$out/grant" \
  --seal --reply-key "$out/reply.key"
grant another-file "$out/original.txt.enc"
refused "$out/other.log" "a grant for another file" decrypt "$out/original.txt.enc" "$out/none" original.txt \
  --grant "$out/grant" --seal --reply-key "$out/reply.key"

say "A file encrypted under another key is refused, and the answer does not say why"
"$bin/teemark" keygen --aad --id demo --output "$out/other-keys.json" >/dev/null 2>&1
"$bin/teemark" encrypt "$out/original.txt" --keys "$out/other-keys.json" --file-id foreign --output "$out/foreign.enc"
grant foreign "$out/foreign.enc"
refused "$out/foreign.log" "a file under another key" decrypt "$out/foreign.enc" "$out/none" foreign \
  --grant "$out/grant" --seal --reply-key "$out/reply.key"

say "A service that returns files unmarked is caught (it is restarted with --fault unmarked, and then without)"
start_service "$port" --fault unmarked
grant original.png "$out/original.png.enc"
refused "$out/unmarked.log" "a file that was not marked" decrypt "$out/original.png.enc" "$out/none" original.png \
  --grant "$out/grant" --seal --reply-key "$out/reply.key"
grep -q watermark_missing "$out/unmarked.log" || fail "the refusal of an unmarked file does not give the reason"
[ ! -e "$out/none" ] || fail "an unmarked file was written"
start_service "$port"

say "A client without a certificate is refused by the service"
if printf 'GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' |
  openssl s_client -connect "localhost:$port" -CAfile "$out/certs/ca.crt" -quiet >"$out/no-certificate.log" 2>&1; then
  if grep -q 'HTTP/1.1 200' "$out/no-certificate.log"; then fail "the service answered without a client certificate"; fi
fi
grep -o 'alert certificate required' "$out/no-certificate.log" | head -n 1 | sed 's/^/    /'
grep -q 'alert' "$out/no-certificate.log" || fail "the service did not refuse"

say "A keeper, on a machine of the operator's, gives the daemon its secrets whenever it has not got them. The daemon is"
echo "    killed and started again, with nothing; nobody does anything, and a file is decrypted:"
cat >"$out/keeper.toml" <<TOML
interval = 1
listen = "127.0.0.1:0"
folder = "."
operator_key = { file = "operator.key" }
[enclaves]
urls = ["http://$public"]
development = true
any_instance = true
[items]
endpoint = "https://localhost:$port"
file_keys = { file = "keys.json" }
grant_keys = { file = "grants.pub" }
[items.certificate]
cert = { file = "certs/client.crt" }
key = { file = "certs/client.key" }
ca = { file = "certs/ecs-ca.crt" }
TOML
"$bin/teemark" keeper --config "$out/keeper.toml" >"$out/keeper.log" 2>&1 &
pids="$pids $!"
await "$out/keeper.log" '"current"' 'the keeper'
kill -9 "$daemon"
wait "$daemon" 2>/dev/null || true
start_daemon teemarkd "${public##*:}" "TEEMARK_OPERATOR_KEYS=$(cat "$out/operator.pub")" TEEMARK_FLEET=demo
await "$out/keeper.log" '"confirmed"' 'the daemon with its secrets'
grep -e '"boot"' -e '"confirmed"' "$out/keeper.log" | tail -n 2 | cut -c 1-120 | sed 's/^/    /; s/$/ .../'
grant original.txt "$out/original.txt.enc"
decrypt "$out/original.txt.enc" "$out/again.txt" original.txt --grant "$out/grant" --seal --reply-key "$out/reply.key" \
  --verify --development 2>"$out/decrypt.log" || { cat "$out/decrypt.log" >&2; fail "the text was not decrypted"; }
"$bin/watermark-service" extract "$out/again.txt" | sed 's/^/    again.txt: /'

say "The plain way, for development: TEEMARK_HANDSHAKE=plain and TEEMARK_GRANTS=off. The daemon says what that gives up:"
trusted=$public
start_daemon plain 0 TEEMARK_HANDSHAKE=plain TEEMARK_GRANTS=off
sed -n 's/.*\(TEEMARK_HANDSHAKE is plain.*\)/    \1/p' "$out/plain.log"

say "The bundle of the checklist (there: cat mtls_certs.json | socat - VSOCK-CONNECT:...:7777), then the file keys"
cd "$out/certs"
cat >../mtls_certs.json <<JSON
{
  "MTLS_CLIENT_CERT_JSON": "{\"client_cert\":\"$(base64 -w 0 <client.crt)\",\"client_key\":\"$(base64 -w 0 <client.key)\",\"ca_cert\":\"$(base64 -w 0 <ecs-ca.crt)\"}",
  "ECS_WATERMARK_ENDPOINT": "https://localhost:$port"
}
JSON
cd - >/dev/null
chmod 600 "$out/mtls_certs.json"
"$bin/teemark" secrets --bundle "$out/mtls_certs.json" --plain --send "unix:$sockets/plain" || fail "handshake refused"
"$bin/teemark" secrets --keys "$out/keys.json" --plain --send "unix:$sockets/plain" || fail "handshake refused"
decrypt "$out/original.txt.enc" "$out/plain.txt" original.txt || fail "the text was not decrypted"
"$bin/watermark-service" extract "$out/plain.txt" | sed 's/^/    plain.txt: /'

say "The same in the service's other form, with every file as base64 in image: TEEMARK_WATERMARK_API=image"
start_daemon image 0 TEEMARK_HANDSHAKE=plain TEEMARK_GRANTS=off TEEMARK_WATERMARK_API=image
"$bin/teemark" secrets --bundle "$out/mtls_certs.json" --plain --send "unix:$sockets/image" || fail "handshake refused"
"$bin/teemark" secrets --keys "$out/keys.json" --plain --send "unix:$sockets/image" || fail "handshake refused"
decrypt "$out/original.txt.enc" "$out/image.txt" original.txt || fail "the text was not decrypted"
"$bin/watermark-service" extract "$out/image.txt" | sed 's/^/    image.txt: /'

cat <<EOT

Done. Each file went in encrypted and came out marked for its user.
    $out/original.png    before
    $out/marked.png      after: looks the same
    $out/difference.png  the difference, amplified 64 times: the mark
    $out/marked.txt      the text, with the mark in invisible characters
    $out/sealed.bundle     the secrets as the parent of an enclave sees them
    $out/keeper.log      what the keeper did
    $out/teemarkd.log    the daemon's log; plain.log and image.log are those of the plain ones, service.log the service's
EOT

if [ "$keep" = --keep ]; then
  cat <<EOT

Still running. Try, from another terminal in this folder (Ctrl-C here ends it):
    curl http://$trusted/health_check
    $bin/teemark grant --key $out/grants.key --file-id original.png --user-id alice --audience demo >grant
    curl -f -H "Authorization: Bearer \$(cat grant)" --data-binary @$out/original.png.enc -o mine.png \\
      'http://$trusted/files/original.png/decrypt?user_id=alice'
    $bin/watermark-service extract mine.png
    $bin/teemark top
EOT
  wait
fi
