#!/bin/sh
# Runs the unit tests of what runs in the enclave on aarch64, by QEMU's emulation of one process: the daemon with its
# allocator, the event loop, the formats, and init; and builds and starts the parent's program, teemark. The image itself boots
# in the scenario `graviton` of make vm-test.
set -eu
CDPATH='' cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-musl
CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=
if [ "$(uname -m)" != aarch64 ]; then
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=qemu-aarch64-static
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER
fi
# One test starts its own program, which the kernel cannot do for another machine.
cargo test --quiet --target "$target" --lib -p teemarkd -p teemark-event-loop -p teemark-formats -p init -- \
  --skip the_process_ends_with_the_logs_thread
cargo build --quiet --target "$target" -p teemark
$CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER "${CARGO_TARGET_DIR:-target}/$target/debug/teemark" --version
