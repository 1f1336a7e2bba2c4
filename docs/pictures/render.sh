#!/bin/sh
# Renders each picture in this folder from its text source (Debian's graphviz, and fonts-wqy-microhei for Chinese). The
# SHA-256 of the source goes into the SVG, so that tests/documents.rs notices a picture that was not rendered again.
set -eu
CDPATH='' cd "$(dirname "$0")"
for source in *.dot; do
  picture=${source%.dot}.svg
  dot -Tsvg "$source" -o "$picture"
  printf '<!-- %s %s -->\n' "$source" "$(sha256sum <"$source" | cut -d ' ' -f 1)" >>"$picture"
done
