#!/bin/sh
# Takes the enclave out of service without losing a request: balancers see /ready at 503, requests are served until no more
# come, for at most 30 s, and those that are still in flight then have 10 s more. With --back, puts it back into service,
# once it can be reached. teemark-expose.service calls both.
set -eu
admin=${EXPOSE_ADMIN-127.0.0.1:3001}
# Where the admin port is not exposed, nobody here can ask the enclave.
[ -n "$admin" ] || exit 0
ask() { curl --silent --show-error --fail "$@"; }
case ${1:-} in
  '')
    for seconds in 30 10; do ask --max-time 45 --data '' "http://$admin/admin/drain?seconds=$seconds"; done
    ;;
  --back) ask --max-time 5 --retry 20 --retry-delay 1 --retry-all-errors --request DELETE "http://$admin/admin/drain" ;;
  *)
    echo 'Usage: [EXPOSE_ADMIN=127.0.0.1:3001] drain.sh [--back]' >&2
    exit 2
    ;;
esac
