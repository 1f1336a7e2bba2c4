#!/bin/sh
# The shipped daemon has no stand-in for the Nitro Secure Module in it, and the image teemark-testnsm, which has one,
# differs from the shipped image in its daemon alone.
set -eu
CDPATH='' cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

fail() { echo "test_nsm: $*" >&2; exit 1; }

shipped=$(image/programs.sh | sed -n 1p)
testnsm=$(image/programs.sh --test-nsm | sed -n 1p)
for daemon in "$shipped" "$testnsm"; do
  [ -s "$daemon" ] || fail "image/programs.sh built nothing"
done
# What src/attest/test_nsm.rs writes, with formats/src/attestation.rs, into its certificates and documents.
for text in 'teemark test root, proves nothing' 'teemark without a Nitro Secure Module' 'test-without-nsm'; do
  grep -q "\"$text\"" src/attest/test_nsm.rs formats/src/attestation.rs || fail "neither file says \"$text\" any more"
  # Without this one the search below could find nothing in any binary.
  grep -qaF "$text" "$testnsm" || fail "$testnsm has no \"$text\" in it"
  if grep -qaF "$text" "$shipped"; then fail "$shipped has \"$text\" in it"; fi
done

image/build.sh --name teemark --output "$dir" >/dev/null
image/build.sh --name teemark-testnsm --test-nsm --output "$dir" >/dev/null
for name in teemark teemark-testnsm; do
  # The daemon, and what it is a part of.
  jq -S 'del(.name, .pcrs, .parts.teemarkd, .parts["ramdisk-1"], .parts.eif)' "$dir/$name.json" >"$dir/$name.rest"
done
diff "$dir/teemark.rest" "$dir/teemark-testnsm.rest" || fail "the images differ in more than the daemon, see above"
difference=$(($(wc -c <"$testnsm") - $(wc -c <"$shipped")))
echo "test_nsm: the shipped daemon has no stand-in for the module; it would be $difference bytes more"
