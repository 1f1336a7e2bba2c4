#!/bin/sh
# Checks the locked dependencies, of the workspace and of the bench, against the published advisories: against a stored
# copy if there is one, for machines that cannot fetch them, else against the current ones.
set -eu
CDPATH='' cd "$(dirname "$0")/.."
stored=../shared/advisory-db
set -- --deny warnings
[ ! -d "$stored" ] || set -- "$@" --db "$stored" --no-fetch --stale
audit() { # FOLDER OPTION...: that one's lock file, without the advisories that its deny.toml names
  folder=$1
  shift
  known=$(sed -n 's/.*{ id = "\(RUSTSEC-[0-9-]*\)".*/--ignore \1/p' "$folder/deny.toml")
  # shellcheck disable=SC2086 # a list of options
  cargo audit --file "$folder/Cargo.lock" $known "$@"
}
audit . "$@"
audit bench "$@"
