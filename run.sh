#!/bin/sh
# Launches teemarkd where there is a shell: on a development machine or in a debug image. Other images start it directly.
#
# Settings are environment variables (docs/REFERENCE.md lists them). The items of the handshake can be set here too, for
# example the endpoint:
#     ECS_WATERMARK_ENDPOINT=https://watermark.internal.staging.zing.you:8080 ./run.sh
# teemarkd waits on port 7777 for those that are not set.
set -eu

TEEMARKD=${TEEMARKD:-/teemarkd}
if [ ! -x "$TEEMARKD" ]; then
  echo "[RUN_SH] no program at $TEEMARKD: set TEEMARKD to the daemon's path" >&2
  exit 1
fi

if [ -n "${MTLS_CLIENT_CERT_JSON:-}" ]; then
  echo "[RUN_SH] writing the mTLS client certificates from MTLS_CLIENT_CERT_JSON" >&2
  "$TEEMARKD" write-certificates || echo "[RUN_SH] MTLS_CLIENT_CERT_JSON not used; a handshake can still bring certificates" >&2
  # The daemon reads the files; the key need not be in its environment too.
  unset MTLS_CLIENT_CERT_JSON
fi

echo "[RUN_SH] starting $TEEMARKD" >&2
exec "$TEEMARKD"
