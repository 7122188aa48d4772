#!/bin/bash
# `make check`: packages, build, guest, lint, the tests in C and the black box tests, one after the other. Each goes on
# where the one before failed, unless there is nothing to go on with. Prints each runner's closing lines, and last one
# line with the sums. Whole outputs are in build/check/.
set -u
export LC_ALL=C
cd "$(dirname "$0")/../.." || exit 1
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL
make=${MAKE:-make}
python=${PYTHON:-/usr/bin/python3}
jobs=$(nproc)
logs=build/check
mkdir -p $logs
began=$SECONDS
passed=0 failed=0 skipped=0

title() { printf '\n== %s\n' "$*"; }

# Runs a stage into its log; shows its end when it fails.
stage() { # name command...
    local name=$1 start=$SECONDS status
    shift
    title "$name"
    "$@" >"$logs/$name.log" 2>&1 </dev/null
    status=$?
    [ $status -eq 0 ] || {
        tail -n 60 "$logs/$name.log" | cut -c 1-600
        grep -aE '^(FAILED|ERROR) ' "$logs/$name.log" | cut -c 1-600 # their messages may be long
    }
    echo "$name: exit $status, $((SECONDS - start)) s"
    return $status
}

# What stands before the tests: without it there is nothing to test.
need() {
    stage "$@" || {
        printf '\ncheck: %s failed, so nothing was tested: 0 passed, 1 failed\n' "$1"
        exit 1
    }
}

# A number that the closing line has before a word ("12 passed, 1 failed").
number() { # word line
    local n
    n=$(sed -n "s/.*\b\([0-9][0-9]*\) $1.*/\1/p" <<<"$2")
    echo "${n:-0}"
}

add() { # log, status, what the closing line must match
    local line p f
    line=$(grep -aE "$3" "$1" | tail -n 1)
    p=$(number passed "$line") f=$(($(number failed "$line") + $(number error "$line")))
    # A runner that says nothing or fails without a failure counts as one.
    if [ "$2" -ne 0 ] && [ "$f" -eq 0 ] || [ $((p + f)) -eq 0 ]; then f=$((f + 1)); fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + $(number skipped "$line")))
}

need packages contrib/deps.sh build run guest test lint
need build "$make" -s -j"$jobs" all c-tests
need guest "$make" -s guest

stage lint "$make" -s lint
status=$?
[ $status -ne 0 ] || grep -a '^lint:' $logs/lint.log
add $logs/lint.log $status '^lint: [0-9]+ passed'

stage c-tests "$make" -s check-unit
status=$?
[ $status -ne 0 ] || grep -aE 'PASSED|SKIPPED|^c tests' $logs/c-tests.log
add $logs/c-tests.log $status '^c tests: '

"$python" tests/lint/contract-coverage.py --reset
for part in http cli e2e; do
    stage $part "$python" -m pytest -q -n 3 tests/$part
    status=$?
    grep -aE '^SKIPPED' $logs/$part.log
    tail -n 1 $logs/$part.log
    add $logs/$part.log $status ' in [0-9.]+s'
done

stage storm "$python" tests/fault/stress.py --seconds 15
status=$?
grep -a FAULT $logs/storm.log
tail -n 1 $logs/storm.log
add $logs/storm.log $status '^storm: '

stage coverage "$python" tests/lint/contract-coverage.py
status=$?
tail -n 1 $logs/coverage.log
if [ $status -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi

printf '\ncheck: %d passed, %d failed, %d skipped, in %d s\n' $passed $failed $skipped $((SECONDS - began))
[ $failed -eq 0 ]
