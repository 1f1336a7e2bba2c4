#!/bin/sh
# Checks the systemd units as systemd reads them, under a separate root folder in which the parent's programs are empty
# scripts: every key and unit is known, every program is where the unit says, and no hardening is missing.
# host/cli/tests/deploy tests what the other scripts of this folder do.
set -eu
here=$(CDPATH='' cd "$(dirname "$0")" && pwd)

command -v systemd-analyze >/dev/null 2>&1 || {
  echo "check.sh: systemd-analyze is not installed; on Debian: apt-get install systemd" >&2
  exit 1
}

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
trap 'exit 130' HUP INT TERM
units=$root/etc/systemd/system
mkdir -p "$units" "$root/usr/bin" "$root/usr/local/bin" "$root/usr/local/libexec/teemark" "$root/usr/lib/systemd/system"
# What every unit depends on.
cp /lib/systemd/system/*.target /lib/systemd/system/*.slice "$root/usr/lib/systemd/system/"
cp "$here"/systemd/*.service "$units/"
install -m 755 "$here"/*.sh "$root/usr/local/libexec/teemark/"
for program in usr/bin/nitro-cli usr/bin/vsock-proxy usr/local/bin/teemark; do
  printf '#!/bin/sh\n' >"$root/$program"
  chmod 755 "$root/$program"
done

wrong() { # unit
  grep -e teemark -e '✗' "$root/words" >&2 || cat "$root/words" >&2
  echo "check.sh: $1 is not correct" >&2
  exit 1
}
for unit in teemark-enclave.service teemark-expose.service teemark-vsock-proxy@8101.service teemark-log-relay.service \
  teemark-log-collect.service teemark-keeper.service; do
  # Some mistakes are reported without changing the exit status.
  systemd-analyze --root="$root" --man=no verify "$unit" >"$root/words" 2>&1 || wrong "$unit"
  ! grep -q teemark "$root/words" || wrong "$unit"
done

# Exposure in tenths: 0 is sandboxed in every way, 100 not at all. Each unit is 2 below its limit, since another version
# of systemd may rate it differently; a missing line of hardening adds up to 4.
for unit in teemark-enclave.service:20 teemark-expose.service:22 teemark-vsock-proxy@.service:19 \
  teemark-log-relay.service:21 teemark-log-collect.service:19 teemark-keeper.service:16; do
  systemd-analyze security --offline=true --threshold="${unit##*:}" "$units/${unit%:*}" >"$root/words" 2>&1 ||
    wrong "${unit%:*}"
done
echo "the systemd units are correct"
