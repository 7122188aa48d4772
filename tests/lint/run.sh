#!/bin/bash
# `make lint`: the rules that a machine can hold. Each check that fails shows what it found; the last line counts.
set -u
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/../.." || exit 1
python=${PYTHON:-/usr/bin/python3}
build=${BUILD:-build}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0 failed=0

check() { # name command...
    local name=$1
    shift
    if "$@" >"$scratch/out" 2>&1; then
        passed=$((passed + 1))
        echo "ok    $name"
        grep '^note: ' "$scratch/out"
    else
        failed=$((failed + 1))
        echo "FAIL  $name"
        sed 's/^/      /' "$scratch/out"
    fi
}

files() { # find's conditions: of all files of the tree but what was built
    find . -type d \( -name .git -o -name 'build*' -o -name __pycache__ -o -name .pytest_cache \) -prune -o -type f \( "$@" \) -print | sed 's|^\./||' | sort
}

layout() {
    files -name '*.c' -o -name '*.h' | xargs clang-format --dry-run 2>"$scratch/layout"
    grep -o '^[^: ]*:[0-9]*:[0-9]*: ' "$scratch/layout" | awk -F: '{ n[$1]++; if (!($1 in at)) at[$1] = $2 }
        END { for (f in n) print f ":" at[f] ": " n[f] " places are not laid out as .clang-format says: make format" }' | sort >"$scratch/places"
    cat "$scratch/places"
    [ ! -s "$scratch/places" ]
}

scripts() {
    files -size -1000k | while read -r file; do
        case $(head -c 64 "$file" | tr -d '\0' | head -n 1) in
        '#!/bin/sh'* | '#!/bin/bash'* | '#!/usr/bin/env bash'*) echo "$file" ;;
        esac
    done | xargs shellcheck -S warning
}

pythons() {
    files -name '*.py' | "$python" -c 'import ast, sys
for path in sys.stdin.read().split(): ast.parse(open(path, encoding="utf-8").read(), path)'
}

# The units with the programs of this build, as systemd would load them.
units() {
    mkdir "$scratch/units"
    sed "s|/usr/sbin/vmmd|$PWD/$build/vmmd|" systemd/vmmd.service >"$scratch/units/vmmd.service"
    cp systemd/vmmd.socket "$scratch/units/"
    sed "s|/usr/bin/vmctl|$PWD/$build/vmctl|" systemd/vmmd-guests.service >"$scratch/units/vmmd-guests.service"
    grep -q "^ExecStop=$PWD/$build/vmctl " "$scratch/units/vmmd-guests.service" || { echo "ExecStop is not /usr/bin/vmctl"; return 1; }
    # Bound to vmmd it would power guests off whenever vmmd stops; not after it, it would find no vmmd to do it.
    if grep -E '^(Requires|Requisite|BindsTo|PartOf|Upholds)=' systemd/vmmd-guests.service; then return 1; fi
    grep -q '^After=.*vmmd\.service' systemd/vmmd-guests.service || { echo "vmmd-guests.service is not after vmmd.service"; return 1; }
    grep -q "^ExecStart=$PWD/$build/vmmd" "$scratch/units/vmmd.service" || { echo "ExecStart is not /usr/sbin/vmmd"; return 1; }
    # It warns with status 0; any word of it counts.
    systemd-analyze verify --man=no "$scratch/units/vmmd.service" "$scratch/units/vmmd.socket" "$scratch/units/vmmd-guests.service" >"$scratch/verify" 2>&1 ||
        { cat "$scratch/verify"; return 1; }
    if grep -F vmmd "$scratch/verify"; then return 1; fi
    systemd-sysusers --dry-run "$PWD/systemd/vmmd.sysusers" || return 1
    mkdir "$scratch/root"
    printf 'root:x:0:0::/root:/bin/sh\n' | install -D /dev/stdin "$scratch/root/etc/passwd"
    printf 'root:x:0:\nvmmd:x:999:\n' | install -D /dev/stdin "$scratch/root/etc/group"
    install -D systemd/vmmd.tmpfiles "$scratch/root/usr/lib/tmpfiles.d/vmmd.conf"
    # Reads all of it, and has nothing to clean.
    systemd-tmpfiles --clean --root="$scratch/root" vmmd.conf
}

# A change of one page is seen as well as a page that is missing.
manuals() {
    for page in contrib/man/*.scd; do
        scdoc <"$page" >"$scratch/page" || return 1
        [ -s "$scratch/page" ] || return 1
    done
    for page in vmctl.1 vmmd.8 vmmd.conf.5; do
        [ -e "contrib/man/$page.scd" ] || { echo "no contrib/man/$page.scd"; return 1; }
    done
}

for name in $("$python" tests/lint/house.py --list); do
    check "house: $name" "$python" tests/lint/house.py "$name"
done
check "layout of C" layout
check "shell scripts" scripts
check "python compiles" pythons
check "docs/errors.md is current" "$python" docs/errors.py --check
check "manual pages" manuals
check "systemd units" units
check "openapi.yaml is valid" tests/lint/openapi-validate.sh

echo "lint: $passed passed, $failed failed"
[ $failed -eq 0 ]
