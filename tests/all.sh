#!/bin/sh
# Runs the tests of the workspace, several test programs at once: most tests wait for something, such as a deadline of ten
# seconds. cargo runs one program after the other. Prints what a program says once it has ended, and fails if one fails.
#
# The tests that measure the daemon's memory or search it (tests/memory.rs, tests/secrecy_memory.rs, tests/state.rs) get a
# static build, which differs from the shipped one in the stand-in for the Nitro Secure Module only.
set -eu
CDPATH='' cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

cargo test --workspace --no-run --message-format=json >"$dir/built"
jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable) |
  .target.name, .executable, (.manifest_path | sub("/[^/]*$"; ""))' "$dir/built" >"$dir/programs"
STATIC=$(image/programs.sh --test-nsm | sed -n 1p)
export STATIC

# Name, program and folder, a line each; a test program is run in its package's folder, as cargo does.
# shellcheck disable=SC2016 # for the shell that it is given to
run='
  case $1 in memory | secrecy_memory | state) export TEEMARKD="$STATIC" ;; esac
  cd "$3"
  if RUST_TEST_THREADS=4 "$2" >"$0/$$.log" 2>&1; then ended=passed; else ended=FAILED; echo "$1" >>"$0/failed"; fi
  { echo; echo "     $1: $ended"; cat "$0/$$.log"; } >"$0/$$.all"
  cat "$0/$$.all"
'
# Some send signals to programs, which leave alone what nohup, or a shell in the background, had them ignore.
xargs -d '\n' -P 4 -n 3 env --default-signal=HUP,INT sh -c "$run" "$dir" <"$dir/programs"
cargo test --quiet --workspace --doc
grep -h '^\*\*\* NOT RUN' "$dir"/*.all || true
if [ -e "$dir/failed" ]; then
  echo "failed: $(tr '\n' ' ' <"$dir/failed")" >&2
  exit 1
fi
