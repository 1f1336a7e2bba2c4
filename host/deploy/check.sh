#!/bin/sh
# Checks the systemd units as systemd reads them, under a root folder of their own where the parent's programs are empty
# scripts: every key and unit is known, every program is where the unit says, nobody has forgotten the hardening.
# What the scripts beside it do is tested by host/cli/tests/deploy.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

command -v systemd-analyze >/dev/null 2>&1 || {
  echo "check.sh: systemd-analyze is not here; on Debian: apt-get install systemd" >&2
  exit 1
}

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
trap 'exit 130' HUP INT TERM
units=$root/etc/systemd/system
mkdir -p "$units" "$root/usr/bin" "$root/usr/local/libexec/teemark" "$root/usr/lib/systemd/system"
# What every unit hangs on.
cp /lib/systemd/system/*.target /lib/systemd/system/*.slice "$root/usr/lib/systemd/system/"
cp "$here"/systemd/*.service "$units/"
install -m 755 "$here"/*.sh "$root/usr/local/libexec/teemark/"
for program in nitro-cli vsock-proxy; do
  printf '#!/bin/sh\n' >"$root/usr/bin/$program"
  chmod 755 "$root/usr/bin/$program"
done

wrong() { # unit
  grep -e teemark -e '✗' "$root/words" >&2 || cat "$root/words" >&2
  echo "check.sh: $1 is not in order" >&2
  exit 1
}
for unit in teemark-enclave.service teemark-expose.service teemark-vsock-proxy@8101.service; do
  # Some mistakes are told and change nothing about the status.
  systemd-analyze --root="$root" --man=no verify "$unit" >"$root/words" 2>&1 || wrong "$unit"
  ! grep -q teemark "$root/words" || wrong "$unit"
done

# Exposure in tenths: 0 is confined in every way, 100 in none. Each stands 2 below its limit, which leaves room for the
# opinions of another systemd; a lost line of hardening is worth up to 4.
for unit in teemark-enclave.service:20 teemark-expose.service:22 teemark-vsock-proxy@.service:19; do
  systemd-analyze security --offline=true --threshold="${unit##*:}" "$units/${unit%:*}" >"$root/words" 2>&1 ||
    wrong "${unit%:*}"
done
echo "the systemd units are in order"
