#!/bin/sh
# Installs what is missing of Debian's packages, by groups. Does nothing, in a few milliseconds, when nothing is missing.
#
#     contrib/deps.sh GROUP...          install (as root, or by sudo)
#     contrib/deps.sh --need GROUP...   only look: exit 1 and say what is missing
#     contrib/deps.sh --list GROUP...   print the packages
#
# Groups: build, run (QEMU and what the daemon calls), guest (what builds the test guest), debian (what builds the Debian
# guest), test, bench, lint, valgrind, clang.
# `a|b` is met by either; what is missing is installed by its first name. Recommended packages are never installed.
set -eu
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
mode=install
case ${1:-} in
--need | --list)
    mode=${1#--}
    shift
    ;;
esac

packages() {
    case $1 in
    build)
        echo "libc6-dev pkgconf|pkg-config libmicrohttpd-dev libjansson-dev libsqlite3-dev libuv1-dev" \
            "libcurl4-openssl-dev|libcurl4-gnutls-dev|libcurl4-nss-dev libarchive-dev libssh-dev libseccomp-dev nettle-dev" \
            "zlib1g-dev liblzma-dev libzstd-dev scdoc"
        ;;
    run) echo "qemu-system-x86 qemu-utils ovmf curl iproute2" ;;
    guest) "$here/guest/build.sh" --packages ;;
    debian) "$here/guest/debian.sh" --packages ;;
    test)
        # zsh and fish try the completions; npm brings the validator of openapi.yaml.
        echo "libcmocka-dev python3 python3-pytest python3-pytest-xdist python3-yaml python3-jsonschema" \
            "python3-websocket ca-certificates openssh-client dnsmasq-base strace zsh fish nodejs xz-utils zstd openssl"
        command -v npm >/dev/null || echo npm
        ;;
    bench) echo wrk ;;
    lint) echo "shellcheck clang-format systemd" ;;
    valgrind) echo valgrind ;;
    clang) echo clang ;;
    *)
        echo "deps: no group $1" >&2
        exit 2
        ;;
    esac
}

wanted=
for group in "$@"; do
    wanted="$wanted $(packages "$group")"
done
if [ "$mode" = list ]; then
    # shellcheck disable=SC2086 # a list
    echo $wanted
    exit 0
fi

if ! command -v dpkg-query >/dev/null; then
    echo "deps: this is no Debian; what is needed is, by Debian's names:$wanted" >&2
    exit 1
fi
# shellcheck disable=SC2046,SC2086 # lists
installed=" $(dpkg-query -W -f='${db:Status-Status} ${Package}\n' $(echo $wanted | tr '|' ' ') 2>/dev/null |
    sed -n 's/^installed //p' | tr '\n' ' ')"
missing=
for entry in $wanted; do
    met=
    for name in $(echo "$entry" | tr '|' ' '); do
        case $installed in *" $name "*) met=1 ;; esac
    done
    [ -n "$met" ] || missing="$missing ${entry%%|*}"
done

# Is there a list of packages at all (the guest is made of packages), and is it of the last day?
have_lists() {
    for list in /var/lib/apt/lists/*_Packages*; do
        [ -e "$list" ] && return 0
    done
    return 1
}
need_lists=
case " $* " in *" guest "* | *" debian "*) have_lists || need_lists=1 ;; esac
[ -n "$missing$need_lists" ] || exit 0

if [ "$mode" = need ]; then
    echo "deps: missing:$missing" >&2
    echo "deps: run \`make deps-all\` (or, without tests' tools, \`make deps\`)" >&2
    exit 1
fi

if [ "$(id -u)" -eq 0 ]; then
    as_root="env"
elif command -v sudo >/dev/null; then
    as_root="sudo env"
else
    echo "deps: these packages are missing, and there is neither root nor sudo to install them:$missing" >&2
    exit 1
fi
# Waits for another apt; asks nothing.
apt() {
    $as_root DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o APT::Install-Recommends=false "$@" </dev/null
}
update() {
    echo "deps: apt-get update"
    apt -q update >/dev/null
    updated=1
}

updated=
if ! have_lists || [ -z "$(find /var/lib/apt/lists -maxdepth 0 -mtime -1)" ]; then
    update
fi
[ -n "$missing" ] || exit 0
echo "deps: apt-get install$missing"
# shellcheck disable=SC2086 # a list
if ! apt install --no-install-recommends $missing >/dev/null; then
    # Lists older than the mirror name files that are gone.
    [ -z "$updated" ] || exit 1
    update
    apt install --no-install-recommends $missing >/dev/null
fi
