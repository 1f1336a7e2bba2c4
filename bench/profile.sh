#!/bin/sh
# What teemarkd's CPU time goes into, in per cent of a request's, for some cells of docs/PERFORMANCE.md. perf(1) looks at its
# threads 2,000 times a second; the kernel's part has what interrupts and softirqs do on its behalf.
#
#     bench/profile.sh ['4 KiB raw' …]    cells as make bench names them
set -eu
CDPATH='' cd "$(dirname "$0")/.."
command -v perf >/dev/null 2>&1 || { echo 'perf is not installed: apt-get install linux-perf' >&2; exit 1; }
[ $# -gt 0 ] || set -- '4 KiB raw' '64 KiB raw' '64 KiB raw, text' '1 MiB raw, text' '16 MiB raw, 1 client'
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

built=$(image/programs.sh --symbols)
daemon=$(realpath "$(echo "$built" | sed -n 1p)")
cargo build --quiet --locked --manifest-path bench/Cargo.toml --target-dir bench/target --profile driver -p teemark-bench
for cell; do
  BENCH_PARTS=cells BENCH_ROUNDS=1 BENCH_SECONDS=8 BENCH_CELL=$cell perf record --quiet --all-cpus --event cpu-clock \
    --freq 1999 --output "$dir/perf" -- bench/target/driver/teemark-bench "teemarkd=$daemon" >"$dir/out" 2>&1 ||
    { cat "$dir/out" >&2; exit 1; }
  echo "$cell"
  # What is looked at is a process with teemarkd's code in it, whatever its threads are called.
  perf script --input "$dir/perf" --fields pid,ip,sym,dso 2>/dev/null | awk -v program="$daemon" '
    {
      pid = $1; dso = $NF; symbol = $0; sub(/^ *[0-9]+ +[0-9a-f]+ /, "", symbol)
      if (index(dso, program)) is_daemon[pid] = 1
      kind = "the rest of teemarkd and its libraries"
      if (dso ~ /kernel|vdso/) kind = "kernel"
      if (symbol ~ /page_fault|clear_page|unmap_page|anonymous_page|handle_mm|mas_|memcg|free_unref|rmqueue/) kind = "kernel: pages of memory"
      else if (symbol ~ /sha256_/) kind = "SHA-256"
      else if (symbol ~ /aes_|ghash|gcm|aead/) kind = "AES-GCM: the file, TLS, the fingerprint"
      else if (symbol ~ /25519|^fe_|^fe[0-9]|^ge_|^sc|sha512|fiat/) kind = "Ed25519"
      else if (symbol ~ /^mem(cpy|move)/) kind = "copies"
      else if (symbol ~ /^memset/) kind = "wiping"
      else if (symbol ~ /malloc|libc_free|alloc_slot|get_meta|allocator::/) kind = "allocator"
      else if (symbol ~ /base64/) kind = "base64"
      else if (symbol ~ /json|utf8|memchr|escape/) kind = "JSON"
      n[pid, kind]++; kinds[kind] = 1
    }
    END {
      for (pid in is_daemon) for (kind in kinds) { of[kind] += n[pid, kind]; all += n[pid, kind] }
      if (!all) { print "profile.sh: perf saw nothing of teemarkd" >"/dev/stderr"; exit 1 }
      for (kind in of) if (of[kind]) printf "%6.1f  %s\n", 100 * of[kind] / all, kind
    }' >"$dir/kinds"
  sort -rn "$dir/kinds"
done
