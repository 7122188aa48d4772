#!/bin/bash
# `make demo`: a real guest through its whole life, by curl and vmctl, against a vmmd of its own on a private socket.
# Each step is shown as the command that a person would type, with its time. Whatever ends the demo, also Ctrl+C: the
# guest, the daemon and their directories are removed; only a failed demo keeps the daemon's log.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/../.."
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL VMMD_URL VMMD_TOKEN
make=${MAKE:-make}
began=${EPOCHREALTIME/./}

bold='' dim='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'
fi
say() { printf '%s\n' "$*"; }
title() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }

# Shows a command, runs it (or its like with a deadline, when there is a second), and says how long it took.
step() { # command [what runs in its place]
    local start=${EPOCHREALTIME/./} status=0
    printf '%s$ %s%s\n' "$bold" "$1" "$plain"
    eval "${2:-$1}" || status=$?
    printf '%s  (%d.%03d s)%s\n' "$dim" $(((${EPOCHREALTIME/./} - start) / 1000000)) \
        $(((${EPOCHREALTIME/./} - start) / 1000 % 1000)) "$plain"
    [ $status -eq 0 ] || { say "demo: this failed with status $status" >&2; exit 1; }
}

# Unix sockets below the directory must fit into 107 bytes.
dir=build/demo
full=$PWD/$dir
if [ ${#full} -gt 60 ]; then
    full=$(mktemp -d /tmp/vmmd-demo.XXXXXX)
    dir=$full
    say "The path of this checkout is too long for Unix sockets below it: the demo uses $full."
fi
pid=

alive() { [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; }

# Waits up to $1 tenths of a second for the process $2 to be gone.
gone() {
    local n
    for ((n = 0; n < $1; n++)); do
        kill -0 "$2" 2>/dev/null || return 0
        sleep 0.1
    done
    return 1
}

# Processes of this demo other than the daemon: guests, which outlive it, and helpers.
strays() {
    local proc
    for proc in /proc/[0-9]*; do
        [ "${proc#/proc/}" != "$$" ] && [ "${proc#/proc/}" != "$pid" ] || continue
        if { tr "\0" " " <"$proc/cmdline" | grep -qF "$full/run/"; } 2>/dev/null; then echo "${proc#/proc/}"; fi
    done
}

cleanup() {
    local status=$? stray
    trap '' INT TERM HUP
    trap - EXIT
    set +e
    if alive; then
        curl -s -m 20 -o /dev/null --unix-socket "$VMMD_SOCKET" -X DELETE -H 'Prefer: wait=15' http://vmmd/v1/vms/web
        kill -TERM "$pid"
        gone 150 "$pid" || kill -KILL "$pid"
        wait "$pid" 2>/dev/null
    fi
    for stray in $(strays); do
        kill -KILL "$stray" 2>/dev/null
    done
    if [ $status -ne 0 ] && [ -s "$full/vmmd.log" ]; then
        cp "$full/vmmd.log" build/demo-failed.log
        say "demo: the daemon's log is kept in build/demo-failed.log; it ends with:" >&2
        tail -n 15 build/demo-failed.log >&2
    fi
    rm -rf "$full"
    [ $status -eq 0 ] || say "demo: ended with status $status, nothing is left running" >&2
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

title "What is missing is installed, built, and a small guest is made"
step "$make -s deps"
step "$make -s -j$(nproc) all"
step "$make -s guest"

rm -rf "$full"
mkdir -p "$full"
title "The daemon: in the foreground of another terminal, or by systemd; here beside us"
export VMMD_SOCKET=$full/vmmd.sock
export PATH=$PWD/build:$PATH
curl="curl -sS --fail-with-body --unix-socket \$VMMD_SOCKET"
say "${bold}\$ export VMMD_SOCKET=$full/vmmd.sock PATH=\$PWD/build:\$PATH${plain}"
say "${bold}\$ vmmd --data-dir $dir/data --runtime-dir $dir/run --socket \$VMMD_SOCKET &${plain}"
# Ctrl+C is for the demo alone; it then ends the daemon in order.
setsid build/vmmd --data-dir "$full/data" --runtime-dir "$full/run" --socket "$VMMD_SOCKET" >"$full/vmmd.log" 2>&1 </dev/null &
pid=$!
for ((n = 0; n < 200; n++)); do
    ! curl -sf -m 5 -o /dev/null --unix-socket "$VMMD_SOCKET" http://vmmd/v1/health || break
    alive || { say "demo: vmmd did not start" >&2; exit 1; }
    sleep 0.1
done
step "$curl http://vmmd/v1/version; echo"
step "vmctl host | head -n 16"

title "A VM from an image, with a cloud-init seed"
cat >"$full/web.json" <<JSON
{"name": "web", "labels": {"app": "shop"}, "spec": {
  "image": "$PWD/build/guest/tiny.qcow2", "vcpus": 1, "memory_mb": 256,
  "cloud_init": {"user_data": "#cloud-config\nhostname: web\nruncmd:\n  - echo \"hello from cloud-init on \$(hostname)\"\n"}}}
JSON
step "cat $dir/web.json"
step "$curl -H 'Content-Type: application/json' -H 'Prefer: wait=60' -d @$dir/web.json http://vmmd/v1/vms | cut -c -240"

title "Start it, and wait until its console shows it is up"
step "vmctl start web"
wait_console() {
    local waited=$SECONDS
    until vmctl log web | grep -a "$1" >/dev/null; do
        [ $((SECONDS - waited)) -lt 150 ] || { say "demo: the guest is not up after 150 s; its console:" >&2; vmctl log web >&2; return 1; }
        alive || { say "demo: vmmd is gone" >&2; return 1; }
        sleep 0.5
    done
}
step "until vmctl log web | grep -aq 'vmmd-guest: up'; do sleep 0.5; done" "wait_console 'vmmd-guest: up'"
wait_console 'hello from cloud-init on web'
step "vmctl log web | grep -ao -e 'vmmd-guest: up' -e 'hello from cloud-init on web'"
step "vmctl wait web --for ready --timeout 60"
step "vmctl list"
step "vmctl status web"

title "Suspend, resume"
step "$curl -X POST -H 'Prefer: wait=30' http://vmmd/v1/vms/web/suspend | cut -c -240"
step "vmctl list"
step "vmctl resume web"
step "vmctl wait web --for running"

title "Press its ACPI power button: the guest shuts itself down"
step "vmctl stop --timeout 60 web"
# The newest operation is the stop. "agent": it was pressed, and the guest's agent was asked as well.
curl -sS --unix-socket "$VMMD_SOCKET" "http://vmmd/v1/operations?limit=1" | grep -q '"method":"\(acpi\|agent\)"' ||
    { say "demo: the guest did not power off by itself" >&2; exit 1; }
step "vmctl list"

title "Destroy it: nothing is left of it"
step "vmctl destroy web"
step "vmctl list"

title "End the daemon"
step "kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done"
wait "$pid" || { say "demo: vmmd ended with status $?" >&2; exit 1; }
pid=
[ -z "$(strays)" ] || { say "demo: processes are left: $(strays)" >&2; exit 1; }

spent=$(((${EPOCHREALTIME/./} - began) / 100000))
printf '\n%sdemo: done in %d.%d s%s\n' "$bold" $((spent / 10)) $((spent % 10)) "$plain"
