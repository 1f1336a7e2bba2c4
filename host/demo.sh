#!/bin/sh
# The main job on real input, step by step, on this machine: real certificates, real mutual TLS, the daemon that goes
# into the enclave. `make demo` runs it; `make run` runs it with --keep and leaves the programs running until Ctrl-C.
set -eu
cd "$(dirname "$0")/.."
keep=${1:-}
bin=${CARGO_TARGET_DIR:-target}/debug
out=out/demo
rm -rf "$out"
mkdir -p "$out"
# A path of its own: a Unix socket's may have 107 bytes, and the folder's may be long.
sockets=$(mktemp -d)
pids=
stop() {
  # shellcheck disable=SC2086 # a list of process numbers
  [ -z "$pids" ] || { kill $pids 2>/dev/null || true; wait 2>/dev/null || true; }
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
decrypt() { # input output
  "$bin/teemark" decrypt "$1" --endpoint "http://$public" --file-id "$3" --user-id user-4711 --output "$2"
}

say "Certificates: a CA, the service's, the client's (certs/make-certs.sh, the seed's openssl commands)"
certs/make-certs.sh "$out/certs" >"$out/certs.log" 2>&1 || fail "no certificates"

say "The watermark service starts; it wants a client certificate of that CA"
"$bin/watermark-service" serve --listen 127.0.0.1:0 --cert "$out/certs/server.crt" --key "$out/certs/server.key" \
  --client-ca "$out/certs/ca.crt" >"$out/service.out" 2>"$out/service.log" &
pids=$!
await "$out/service.out" 'listening on' 'the watermark service'
port=$(sed -n 's/.*listening on https:.*:\([0-9]*\)$/\1/p' "$out/service.out")

say "teemarkd starts by run.sh; it may connect to localhost:$port and nowhere else"
printf 'endpoints:\n  - localhost:%s\n' "$port" >"$out/allowed_endpoints.yaml"
http_port=0
[ "$keep" != --keep ] || http_port=3000
TEEMARKD=$bin/teemarkd TEEMARK_EGRESS=direct TEEMARK_ENDPOINTS=$out/allowed_endpoints.yaml \
  TEEMARK_CERTS=$out/opt-enclave-certs TEEMARK_PUBLIC=tcp:127.0.0.1:$http_port TEEMARK_ADMIN=unix:$sockets/admin \
  TEEMARK_SECRETS=unix:$sockets/secrets ./run.sh 2>"$out/teemarkd.log" &
pids="$pids $!"
await "$out/teemarkd.log" 'waiting for the handshake' 'teemarkd'
public=$(sed -n 's/.*public: listening on tcp:\(.*\)$/\1/p' "$out/teemarkd.log")

say "Handshake with the bytes of the seed's command (cat mtls_certs.json | socat - VSOCK-CONNECT:...:7777)"
cd "$out/certs"
cat >../mtls_certs.json <<JSON
{
  "MTLS_CLIENT_CERT_JSON": "{\"client_cert\":\"$(base64 -w 0 <client.crt)\",\"client_key\":\"$(base64 -w 0 <client.key)\",\"ca_cert\":\"$(base64 -w 0 <ecs-ca.crt)\"}",
  "ECS_WATERMARK_ENDPOINT": "https://localhost:$port"
}
JSON
cd - >/dev/null
chmod 600 "$out/mtls_certs.json"
"$bin/teemark" secrets --bundle "$out/mtls_certs.json" --send "unix:$sockets/secrets" || fail "handshake refused"

say "A second one brings the file keys; now nothing is missing"
"$bin/teemark" keygen --output "$out/keys.json" || fail "no key"
"$bin/teemark" secrets --keys "$out/keys.json" --send "unix:$sockets/secrets" || fail "handshake refused"

say "A picture and a text are encrypted, as Zing's clients do"
"$bin/watermark-service" sample "$out/original.png"
cp LICENSE "$out/original.txt"
for file in original.png original.txt; do "$bin/teemark" encrypt "$out/$file" --keys "$out/keys.json"; done

say "teemarkd decrypts both and has them marked for user-4711"
decrypt "$out/original.png.enc" "$out/marked.png" picture-1 || fail "the picture was not decrypted"
decrypt "$out/original.txt.enc" "$out/marked.txt" text-1 || fail "the text was not decrypted"

say "The marks, read back from the marked files"
for file in marked.png marked.txt; do
  mark=$("$bin/watermark-service" extract "$out/$file") || fail "no mark in $file"
  echo "    $file: $mark"
  case $mark in *user-4711*) ;; *) fail "the mark in $file is another user's" ;; esac
done
"$bin/watermark-service" difference "$out/original.png" "$out/marked.png" "$out/difference.png" --gain 64

say "A file under another key is refused, and nothing says why"
"$bin/teemark" keygen --id "$(sed -n 's/.*"\([^"]*\)": *".*/\1/p' "$out/keys.json" | head -n 1)" --output "$out/other-keys.json" >/dev/null 2>&1
"$bin/teemark" encrypt "$out/original.txt" --keys "$out/other-keys.json" --output "$out/foreign.enc"
if decrypt "$out/foreign.enc" "$out/foreign.txt" text-2; then fail "a file under another key was decrypted"; fi

say "A client without a certificate is refused by the service"
if printf 'GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' |
  openssl s_client -connect "localhost:$port" -CAfile "$out/certs/ca.crt" -quiet >"$out/no-certificate.log" 2>&1; then
  if grep -q 'HTTP/1.1 200' "$out/no-certificate.log"; then fail "the service answered without a client certificate"; fi
fi
grep -o 'alert certificate required' "$out/no-certificate.log" | head -n 1 | sed 's/^/    /'
grep -q 'alert' "$out/no-certificate.log" || fail "the service did not refuse"

cat <<EOT

Done. Each file went in encrypted and came out marked for its user.
    $out/original.png    before
    $out/marked.png      after: looks the same
    $out/difference.png  the difference, 64 times as strong: the mark
    $out/marked.txt      the text, with the mark in characters that take no room
    $out/teemarkd.log    what the daemon logged; service.log is the other side
EOT

if [ "$keep" = --keep ]; then
  key=$(sed -n 's/.*"\([^"]*\)": *".*/\1/p' "$out/keys.json" | head -n 1)
  cat <<EOT

Still running. Try, from another terminal in this folder (Ctrl-C here ends it):
    curl http://$public/health_check
    curl -f --data-binary @$out/original.png.enc -o mine.png 'http://$public/files/picture-1/decrypt?user_id=alice&key_id=$key'
    $bin/watermark-service extract mine.png
EOT
  wait
fi
