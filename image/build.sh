#!/bin/sh
# Builds the enclave image: the kernel, PID 1 and the daemon, and of them OUTPUT/NAME.eif with its .pcrs and .json.
# What stands in the image does not depend on where or when it is built: see tests/reproducible.sh.
#
#     image/build.sh [--operator FILE | --no-operator] [--debug [--launcher FILE]] [--test-nsm] [--certs DIR]
#                    [--environment FILE] [--endpoints FILE] [--command-line STRING] [--sign-key FILE --sign-certificate FILE]
#                    [--arch ARCH] [--compression gzip] [--kernel FILE [--module FILE]] [--name NAME] [--output DIR]
#
# --operator    public half of the key that secrets have to be signed with; by default that of image/operator.sh, unless
#               the environment file takes a plain handshake or names the keys itself
# --debug       a shell in the image, and run.sh, or another launcher that --launcher names. The shell is this machine's
#               /bin/busybox; for another architecture, --shell names one of it
# --test-nsm    a daemon that signs attestation documents by itself where there is no /dev/nsm; for virtual machines
#               here, never for an instance
# --certs       client.crt, client.key and ecs-ca.crt baked in; without, the handshake delivers them
# --arch        x86_64 or aarch64 (Graviton); by default that of this machine
# --compression gzip in place of xz, for the kernel and the ramdisks
# --kernel      another kernel than that of image/kernel, such as AWS' bzImage; --module is its nsm.ko
# The rest goes to `teemark-image build` as it is; `teemark-image build --help` tells more.
set -eu
root=$(CDPATH='' cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}

given() { # is the option among the arguments?
  option=$1
  shift
  for argument; do [ "$argument" = "$option" ] && return 0; done
  return 1
}
value() { # of an option among the arguments; nothing if it is not there
  option=$1
  shift
  while [ $# -gt 1 ]; do
    [ "$1" != "$option" ] || { echo "$2"; return; }
    shift
  done
}
arch=$(value --arch "$@")
arch=${arch:-$(uname -m)}
"$root/host/install-tools.sh" image "$arch"
if ! given --kernel "$@"; then
  compression=$(value --compression "$@")
  kernel=$("$root/image/kernel/build.sh" --arch "$arch" --compression "${compression:-xz}")
  set -- --kernel "$kernel"/*Image "$@"
fi
if given --test-nsm "$@"; then variant=--test-nsm; else variant=; fi
# shellcheck disable=SC2086 # none or one
programs=$("$root/image/programs.sh" --arch "$arch" $variant)
# Of the whole workspace, so that its crates have the features that the tests' build gives them, and are built once.
(cd "$root" && cargo build --quiet --locked --workspace --bin teemark-image)

closed=
environment=$root/image/teemark.env
previous=
for argument; do
  shift
  [ "$previous" != --environment ] || environment=$argument
  case "$argument" in
    --no-operator) closed=1 ;;
    --test-nsm | --arch) ;;
    *) [ "$previous" = --arch ] || set -- "$@" "$argument" ;;
  esac
  previous=$argument
done
set -- --daemon "$(echo "$programs" | sed -n 1p)" --init "$(echo "$programs" | sed -n 2p)" "$@"
given --endpoints "$@" || set -- "$@" --endpoints "$root/allowed_endpoints.yaml"
given --environment "$@" || set -- "$@" --environment "$environment"
if [ -z "$closed" ] && ! given --operator "$@" &&
  ! grep -qE '^TEEMARK_(HANDSHAKE=plain|OPERATOR_KEYS=.)' "$environment"; then
  operator=$("$root/image/operator.sh")
  set -- "$@" --operator "$operator"
fi
given --output "$@" || set -- "$@" --output "$root/out"
if given --debug "$@"; then
  given --launcher "$@" || set -- "$@" --launcher "$root/run.sh"
  given --shell "$@" || set -- "$@" --shell /bin/busybox
fi
exec "$target/debug/teemark-image" build "$@"
