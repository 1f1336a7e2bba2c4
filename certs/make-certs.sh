#!/bin/sh
# Makes a development CA and, from it, the watermark service's certificate and the enclave's client certificate.
# If ca.crt and ca.key are there already, it makes only what is missing. See README.md in this folder.
set -eu
umask 077

usage() {
    cat <<'EOF'
Usage: make-certs.sh [--client-only] [--days N] [--force] [DIR]

Makes ca.key ca.crt, server.key server.crt, client.key client.csr client.crt and ecs-ca.crt (a copy of ca.crt)
in DIR, by default the folder of this script. Files that are there already are kept.

  --client-only  make only the client's key and certificate, signed by the ca.crt and ca.key in DIR
  --days N       how many days the server's and the client's certificates are valid, 1 to 3650 (default 365)
  --force        replace what is there; with --client-only the CA is never replaced
EOF
}

die() {
    echo "make-certs.sh: $*" >&2
    exit 1
}

# openssl prints its progress on stderr, which is of interest only if it fails.
quiet() {
    "$@" >/dev/null 2>"$new/log" || {
        cat "$new/log" >&2
        die "this failed, nothing was changed: $*"
    }
}

# The checklist's commands. $1: client or server, $2: subject, $3: the certificate's extensions.
sign() {
    quiet openssl genrsa -out "$new/$1.key" 2048
    quiet openssl req -new -key "$new/$1.key" -out "$new/$1.csr" -subj "$2"
    printf '[v3_ext]\n%s\n' "$3" >"$new/ext"
    quiet openssl x509 -req -in "$new/$1.csr" -CA "$ca/ca.crt" -CAkey "$ca/ca.key" -CAserial "$dir/ca.srl" \
        -CAcreateserial -out "$new/$1.crt" -days "$days" -sha256 -extensions v3_ext -extfile "$new/ext"
}

make_ca() {
    printf '%s\n' '[req]' 'distinguished_name=dn' '[dn]' '[v3_ca]' 'basicConstraints=critical,CA:TRUE,pathlen:0' \
        'keyUsage=critical,keyCertSign,cRLSign' 'subjectKeyIdentifier=hash' >"$new/ext"
    quiet openssl genrsa -out "$new/ca.key" 2048
    quiet openssl req -x509 -new -key "$new/ca.key" -out "$new/ca.crt" -sha256 -days 3650 \
        -subj "/CN=teemark development CA/O=Zing" -config "$new/ext" -extensions v3_ca
    cp "$new/ca.crt" "$new/ecs-ca.crt"
}

make_server() {
    sign server "/CN=watermark.internal.staging.zing.you/O=Zing" 'basicConstraints=CA:FALSE
keyUsage=digitalSignature,keyEncipherment
extendedKeyUsage=serverAuth
subjectAltName=DNS:watermark.internal.staging.zing.you,DNS:localhost,IP:127.0.0.1'
    rm "$new/server.csr"
}

make_client() {
    sign client "/CN=tee-client/O=Zing" 'keyUsage=digitalSignature,keyEncipherment
extendedKeyUsage=clientAuth'
}

# A real CA's ca.crt may be an intermediate one, hence -partial_chain. $1: folder, $2: client or server.
verify() {
    remedy=--force
    [ "$2" = server ] || remedy='--client-only --force'
    result=$(openssl verify -partial_chain -purpose "ssl$2" -CAfile "$ca/ca.crt" "$1/$2.crt" 2>&1) || {
        echo "$result" >&2
        die "$1/$2.crt does not verify against $ca/ca.crt; to replace it: $remedy"
    }
    wanted=$(openssl x509 -in "$1/$2.crt" -noout -pubkey)
    [ "$(openssl pkey -in "$1/$2.key" -pubout)" = "$wanted" ] ||
        die "$1/$2.key is not the key of $1/$2.crt; to replace both: $remedy"
}

have() {
    for file; do
        [ -e "$dir/$file" ] || return 1
    done
}

have_any() {
    for file; do
        [ ! -e "$dir/$file" ] || return 0
    done
    return 1
}

client_only='' force='' days=365 dir=''
while [ $# -gt 0 ]; do
    case $1 in
        --client-only) client_only=yes ;;
        --force) force=yes ;;
        --days)
            [ $# -ge 2 ] || die "--days needs a number"
            shift
            days=$1
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*)
            usage >&2
            die "there is no option $1"
            ;;
        *)
            [ -z "$dir" ] || die "only one folder can be given, not two: $dir and $1"
            dir=$1
            ;;
    esac
    shift
done
case $days in
    '' | *[!0-9]* | ?????*) die "--days takes a number from 1 to 3650, not '$days'" ;;
esac
if [ "$days" -lt 1 ] || [ "$days" -gt 3650 ]; then
    die "--days takes a number from 1 to 3650, not '$days'"
fi
command -v openssl >/dev/null || die "there is no openssl command; on Debian: apt-get install openssl"
[ -n "$dir" ] || dir=$(dirname "$0")
mkdir -p "$dir"
# An absolute path cannot be taken for an option.
dir=$(CDPATH='' cd "$dir" && pwd)

ca=$dir
todo=''
if [ -n "$client_only" ]; then
    have ca.crt ca.key || die "--client-only needs ca.crt and ca.key in $dir"
    if [ -z "$force" ] && have_any client.key client.crt; then
        die "$dir has a client certificate or key; to replace it: --client-only --force"
    fi
    todo=client
elif [ -n "$force" ]; then
    todo='ca server client'
else
    if have_any ca.crt ca.key; then
        have ca.crt ca.key || die "$dir has only one of ca.crt and ca.key; add the other, or use --force for a new CA"
    else
        have_any server.crt server.key client.crt client.key ecs-ca.crt &&
            die "$dir has certificates but not the CA that signed them; add ca.crt and ca.key, or use --force to replace all"
        todo=ca
    fi
    for name in server client; do
        have $name.crt $name.key && continue
        have_any $name.crt $name.key && die "$dir has only one of $name.crt and $name.key; move it away, or use --force"
        todo="$todo $name"
    done
fi

# Everything is made and verified in a separate folder, then moved into place, so that a failure changes nothing.
new=$(mktemp -d "$dir/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
for name in $todo; do
    if [ "$name" = ca ]; then
        make_ca
        ca=$new
    else
        "make_$name"
        verify "$new" "$name"
    fi
done
have ecs-ca.crt || [ -e "$new/ecs-ca.crt" ] || cp "$ca/ca.crt" "$new/ecs-ca.crt"

made=''
for file in ca.key ca.crt server.key server.crt client.key client.csr client.crt ecs-ca.crt; do
    [ -e "$new/$file" ] || continue
    case $file in
        *.key) chmod 600 "$new/$file" ;;
        *) chmod 644 "$new/$file" ;;
    esac
    mv -f "$new/$file" "$dir/$file"
    made="$made $file"
done
ca=$dir

if [ -n "$client_only" ]; then
    names=client
else
    names='server client'
fi
for name in $names; do
    verify "$dir" "$name"
done
if [ -n "$made" ]; then
    echo "made in $dir:$made"
else
    echo "everything is in $dir already, nothing changed"
fi
for name in $names; do
    echo "verified: $name.crt, valid until $(openssl x509 -in "$dir/$name.crt" -noout -enddate | cut -d= -f2)"
done
