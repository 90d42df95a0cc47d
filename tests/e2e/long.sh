#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What is too long for every run, on the real model:
#
#   decode      4,000 tokens under each press that works while tokens are generated: at every 50th the
#               pool is within the press's bound, and the process does not grow past it (long_decode.py)
#   sanitizers  the unit tests of presses and the whole e2e suite on a server built by clang with
#               ASan, LSan and UBSan; a report anywhere is a failure
#
#   PRESSD_BIN, PRESSD_TEST_MODEL, PRESSD_TEST_MODEL_GEMMA, PRESSD_PYTHON   as in run.sh
#   long.sh [decode] [sanitizers]     these alone
#
# Some ten minutes each on a machine alone.  Ends in `N passed, N failed`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PRESSD_TOP=$(cd "$here/../.." && pwd)
. "$PRESSD_TOP/deploy/lib.sh"
[ $# -gt 0 ] || set -- decode sanitizers
passed=0 failed=0 work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

add() { # the counts of a program that ends in `N passed, N failed`; its output stays seen
    local last
    "$@" | tee "$work/out" || true
    last=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$work/out" | tail -n 1) || last='0 passed, 1 failed'
    passed=$((passed + ${last%% passed*}))
    last=${last#*, }
    failed=$((failed + ${last%% failed*}))
}

decode() { add "${PRESSD_PYTHON:-python3}" "$here/long_decode.py"; }

sanitizers() {
    local dir=$PRESSD_TOP/build/asan t reports
    CC=clang pd_build "$dir" all -Dwerror=true -Dtests=true -Dbuildtype=debugoptimized \
        -Db_sanitize=address,undefined -Db_ndebug=false -Db_lundef=false
    export ASAN_OPTIONS=detect_leaks=1:log_path=$work/report UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:log_path=$work/report
    for t in press_matrix press_engine press_golden decode_press decode_engine deferred wrapper_rules calibrate; do
        if "$dir/tests/unit/test_$t" >"$work/log" 2>&1; then passed=$((passed + 1)); else
            failed=$((failed + 1))
            tail -n 20 "$work/log"
        fi
        echo "sanitizers: test_$t ended"
    done
    PRESSD_BIN=$dir/server/pressd PRESSD_TEST_PATIENCE=20 add "$here/run.sh"
    reports=$(find "$work" -name 'report.*' | wc -l)
    if [ "$reports" -eq 0 ]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        head -n 60 "$work"/report.*
    fi
}

for part in "$@"; do
    case $part in
    decode | sanitizers) "$part" ;;
    *) pd_die "no part named '$part'; there are: decode sanitizers" ;;
    esac
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
