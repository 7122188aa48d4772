#!/bin/bash
# Runs test programs of cmocka, two at a time, each with a deadline, and prints their closing lines and a total.
#
#     run-c-tests.sh [-j N] [-t SECONDS] [-w "WRAPPER ARGS"] PROGRAM...
#
# Each program's whole output is kept as PROGRAM.log (shown when it fails). Exit 1 if anything failed or nothing ran.
set -u
export LC_ALL=C

jobs=2 seconds=300 wrapper=
while getopts j:t:w: option; do
    case $option in
    j) jobs=$OPTARG ;;
    t) seconds=$OPTARG ;;
    w) wrapper=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || { echo "c tests: no programs given" >&2; exit 1; }

# A program's own group of processes ends with it: timeout signals the whole group.
run() {
    local program=$1 status
    # shellcheck disable=SC2086 # a list
    CMOCKA_MESSAGE_OUTPUT=stdout timeout -k 10 "$seconds" $wrapper "$program" >"$program.log" 2>&1 </dev/null
    status=$?
    echo "$status" >"$program.status"
}

for program in "$@"; do
    rm -f "$program.status"
done
trap 'trap "" INT TERM; kill $(jobs -p) 2>/dev/null; exit 130' INT TERM
running=0
for program in "$@"; do
    if [ $running -ge "$jobs" ]; then
        wait -n
        running=$((running - 1))
    fi
    run "$program" &
    running=$((running + 1))
done
wait

# The sum of N in the lines "[  WORD  ] N test(s)" of a log.
count() { # word log
    sed -n "s/^\[ *$1 *\] \([0-9][0-9]*\) test(s).*/\1/p" "$2" | awk '{ n += $1 } END { print n + 0 }'
}

passed=0 failed=0 skipped=0 bad=
for program in "$@"; do
    status=$(cat "$program.status" 2>/dev/null || echo none)
    log=$program.log
    p=$(count PASSED "$log") f=$(count FAILED "$log") s=$(count SKIPPED "$log")
    # What died, hung or never came to its closing line has failed once more than it says.
    if [ "$status" != 0 ] && [ "$f" -eq 0 ] || [ $((p + f)) -eq 0 ]; then
        f=$((f + 1))
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    if [ "$f" -gt 0 ]; then
        bad=1
        case $status in
        124 | 137) why="did not end in $seconds s" ;;
        *) why="exit status $status" ;;
        esac
        echo "---- ${program##*/}: $why"
        grep -aE '^\[  (FAILED|ERROR|  ERROR )|Error|error:|ERROR|WARNING: Thread|==[0-9]+==' "$log" | head -n 20
        echo "---- the end of $log:"
        tail -n 25 "$log"
    fi
    grep -aE '^\[ *(PASSED|FAILED|SKIPPED) *\] [0-9]+ test' "$log" | sed "s|^|${program##*/}: |"
done
echo "c tests: $passed passed, $failed failed, $skipped skipped, in $# programs"
[ -z "$bad" ]
