#!/bin/bash
# Boots what build.sh made under TCG, without a daemon: direct boot on q35 and microvm, and the disk from BIOS and (with
# Debian's ovmf) UEFI. Each must print its line, then power off by the ACPI button. About 30 s.
#
#     contrib/guest/check.sh build/guest
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: check.sh DIR" >&2; exit 2; }
dir=$(cd "$1" && pwd)
work=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

# Waits up to 60 s until a file has a line that matches.
wait_for() { # what file pattern
    local n
    for ((n = 0; n < 600; n++)); do
        ! grep -aq "$3" "$2" || return 0
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    echo "check: $1: no '$3' on the console, whose end is:" >&2
    tail -n 20 "$2" >&2
    cat "$work/stderr" >&2
    exit 1
}

run() { # name, QEMU arguments
    local name=$1 start=${EPOCHREALTIME/./} up
    shift
    : >"$work/console"
    rm -f "$work/monitor"
    mkfifo "$work/monitor"
    qemu-system-x86_64 -nodefaults -no-user-config -display none -accel tcg -m 256 -serial "file:$work/console" \
        -monitor stdio "$@" <"$work/monitor" >/dev/null 2>"$work/stderr" &
    pid=$!
    exec 3>"$work/monitor"
    wait_for "$name" "$work/console" '^vmmd-guest: up'
    up=$(((${EPOCHREALTIME/./} - start) / 1000))
    echo system_powerdown >&3
    wait_for "$name" "$work/console" 'going down (poweroff)'
    wait "$pid"
    pid=
    exec 3>&-
    echo "check: $name: up in $up ms, powered off"
}

# Under TCG a microvm kernel needs to be told how fast the TSC is; the host's is near enough for this.
khz=$(awk '/^cpu MHz/ { printf "%d", $4 * 1000; exit }' /proc/cpuinfo)
direct=(-kernel "$dir/vmlinuz" -initrd "$dir/initrd.img" -append "console=ttyS0 quiet tsc_early_khz=$khz")
# shellcheck disable=SC2054 # commas of QEMU
disk=(-machine q35 -snapshot -drive "if=none,id=d,format=qcow2,file=$dir/tiny.qcow2" -device virtio-blk-pci,drive=d
    -netdev user,id=n -device virtio-net-pci,netdev=n)

run "direct boot, q35" -machine q35 "${direct[@]}"
run "direct boot, microvm" -machine microvm "${direct[@]}"
run "disk, BIOS" "${disk[@]}"
if [ -e /usr/share/OVMF/OVMF_CODE_4M.fd ]; then
    cp /usr/share/OVMF/OVMF_VARS_4M.fd "$work/vars.fd"
    run "disk, UEFI" "${disk[@]}" -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
        -drive "if=pflash,format=raw,file=$work/vars.fd"
else
    echo "check: disk, UEFI: left out, no ovmf here"
fi
