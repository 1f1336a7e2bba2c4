#!/bin/sh
# The launcher where there is a shell: a development machine, a debug image. An ordinary image starts teemarkd itself.
#
# Settings are environment variables (docs/REFERENCE.md lists them). The three items of the handshake may be set here too,
# the endpoint for instance:
#     ECS_WATERMARK_ENDPOINT=https://watermark.internal.staging.zing.you:8080 ./run.sh
# What is not set, teemarkd waits for on port 7777.
set -eu

TEEMARKD=${TEEMARKD:-/teemarkd}
if [ ! -x "$TEEMARKD" ]; then
  echo "[RUN_SH] $TEEMARKD is not there: set TEEMARKD to the daemon's path" >&2
  exit 1
fi

if [ -n "${MTLS_CLIENT_CERT_JSON:-}" ]; then
  echo "[RUN_SH] writing the mTLS client certificates from MTLS_CLIENT_CERT_JSON" >&2
  "$TEEMARKD" write-certificates || echo "[RUN_SH] MTLS_CLIENT_CERT_JSON not used; the handshake can still deliver it" >&2
  # The daemon reads the files; the key need not stand in its environment as well.
  unset MTLS_CLIENT_CERT_JSON
fi

echo "[RUN_SH] starting $TEEMARKD" >&2
exec "$TEEMARKD"
