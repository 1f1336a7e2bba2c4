#!/bin/sh
# Checks the locked dependencies against the published advisories: against a stored copy if there is one, for machines
# that cannot fetch them, else against the current ones.
set -eu
CDPATH='' cd "$(dirname "$0")/.."
known=$(sed -n 's/.*{ id = "\(RUSTSEC-[0-9-]*\)".*/--ignore \1/p' deny.toml)
stored=../shared/advisory-db
if [ -d "$stored" ]; then
  # shellcheck disable=SC2086 # a list of options
  exec cargo audit $known --deny warnings --db "$stored" --no-fetch --stale
fi
# shellcheck disable=SC2086
exec cargo audit $known --deny warnings
