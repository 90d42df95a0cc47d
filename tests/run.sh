#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The test command: installs what the tests need, builds, runs the suites, and
# ends in one line `N passed, N failed` (exit 1 if anything failed).
#
#   tests/run.sh              every suite
#   tests/run.sh unit http    these
#
# unit and kernel are meson's; asan runs both once more, built by clang with
# ASan and UBSan; fuzz runs each target for 20 s from its seeds.  Every other
# suite is a script tests/<suite>/run.sh that ends in `N passed, N failed`; it
# finds in its environment
#   PRESSD_BIN                the built pressd
#   PRESSD_PYTHON             a python3 with tests/requirements.txt installed
#   PRESSD_TEST_MODEL         SmolLM2-135M-Instruct, Q4_1
#   PRESSD_TEST_MODEL_GEMMA   Gemma 3 270M, Q4_K_M
#   PRESSD_TEST_VOCABS        a folder filled by tests/golden/fetch_vocabs.sh
# PRESSD_TEST_LONG=1 makes golden ask its longest prompts too.
# Builds are in build/tests, build/asan and build/fuzz, logs in build/testlog.
set -euo pipefail
PRESSD_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$PRESSD_TOP"
. deploy/lib.sh
exec </dev/null # nothing here may wait for a person

all=(lint unit kernel asan fuzz cli grammar golden http e2e clients)
known() { case " ${all[*]} " in *" $1 "*) return 0 ;; esac; return 1; }
case ${1-} in -h | --help)
    sed -n '3,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
for suite in "$@"; do
    known "$suite" || { pd_say "no suite named '$suite'; there are: ${all[*]}"; exit 2; }
done
[ $# -gt 0 ] || set -- "${all[@]}"
wanted() { case " $suites " in *" $1 "*) return 0 ;; esac; return 1; }
suites="$*"

logs=$PRESSD_TOP/build/testlog
mkdir -p "$logs"
passed=0 failed=0

# An early end is a failure too, and the last line says so.
finish() {
    local rc=$?
    trap - EXIT
    if [ $rc -ne 0 ]; then failed=$((failed + 1)); fi
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ] || exit 1
    exit 0
}
trap finish EXIT
trap 'exit 130' INT TERM

# ---- what the suites need ----

prepare() {
    pd_need "${PRESSD_BUILD_PACKAGES[@]}" libcmocka-dev clang libclang-rt-dev prometheus git \
        python3 python3-venv procps curl ca-certificates
    if wanted unit || wanted asan || wanted golden || wanted http || wanted e2e || wanted clients || wanted grammar; then
        need_venv
        pd_model_smollm2
        export PRESSD_TEST_MODEL=$PD_MODEL
        pd_model_gemma3
        export PRESSD_TEST_MODEL_GEMMA=$PD_MODEL
    fi
    if [ -x tests/golden/fetch_vocabs.sh ] && { wanted unit || wanted asan || wanted golden; }; then
        export PRESSD_TEST_VOCABS=$PRESSD_CACHE/vocabs
        tests/golden/fetch_vocabs.sh "$PRESSD_TEST_VOCABS" >"$logs/vocabs.log" 2>&1 ||
            { tail -n 20 "$logs/vocabs.log" >&2; pd_die "tests/golden/fetch_vocabs.sh failed"; }
    fi
    pd_build "$PRESSD_TOP/build/tests" all -Dwerror=true -Dtests=true
    export PRESSD_BIN=$PRESSD_TOP/build/tests/server/pressd
    if wanted asan; then
        CC=clang pd_build "$PRESSD_TOP/build/asan" all -Dwerror=true -Dtests=true -Dbuildtype=debugoptimized \
            -Db_sanitize=address,undefined -Db_ndebug=false -Db_lundef=false
    fi
    if wanted fuzz; then
        CC=clang pd_build "$PRESSD_TOP/build/fuzz" fuzz -Dwerror=true -Dtests=true -Dfuzz=true
    fi
}

# One venv per content of requirements.txt, in the cache, whole or not there.
need_venv() {
    local want venv base=python3
    want=$(sha256sum <tests/requirements.txt | cut -c 1-12)
    venv=$PRESSD_CACHE/venv-$want
    if [ ! -f "$venv/.ready" ]; then
        python3 -c 'import venv, ensurepip' 2>/dev/null || base=/usr/bin/python3
        pd_say "installing tests/requirements.txt"
        rm -rf "$venv"
        mkdir -p "$PRESSD_CACHE"
        "$base" -m venv "$venv" >"$logs/venv.log" 2>&1 &&
            "$venv/bin/python" -m pip --disable-pip-version-check install -r tests/requirements.txt \
                >>"$logs/venv.log" 2>&1 ||
            { tail -n 20 "$logs/venv.log" >&2; pd_die "the Python environment could not be made"; }
        : >"$venv/.ready"
    fi
    export PRESSD_PYTHON=$venv/bin/python
}

# ---- running ----

# meson_suite DIR SUITE...: every test program of the suites, counted by count.py.
meson_suite() {
    local dir=$1 args=() s
    shift
    for s in "$@"; do args+=(--suite "$s"); done
    rm -f "$dir/meson-logs/testlog.json" # of an earlier run
    meson test -C "$dir" --no-rebuild --num-processes 2 --timeout-multiplier 4 "${args[@]}" ||
        true # count.py judges
    python3 tests/count.py "$dir/meson-logs/testlog.json"
}

run_suite() {
    case $1 in
    unit | kernel) meson_suite build/tests "$1" ;;
    asan)
        export ASAN_OPTIONS=detect_leaks=1:halt_on_error=1:abort_on_error=1
        export UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1
        meson_suite build/asan unit kernel
        ;;
    fuzz) meson_suite build/fuzz fuzz ;;
    http) timeout -k 10 600 "$PRESSD_PYTHON" tests/http/run.py build/tests/tests/http/pressd_http_test -v ;;
    *) timeout -k 10 1200 "tests/$1/run.sh" ;; # a bound for what hangs: minutes on a slow machine
    esac
}

# True if there is something to run.
there() {
    case $1 in
    unit | kernel | asan | fuzz) return 0 ;;
    http) [ -f tests/http/run.py ] ;;
    *) [ -x "tests/$1/run.sh" ] ;;
    esac
}

one_suite() {
    local name=$1 log=$logs/$1.log rc=0 ok=0 bad=0 skipped= t0=$SECONDS
    if ! there "$name"; then
        printf '%-8s not there\n' "$name"
        return 0
    fi
    (run_suite "$name") >"$log" 2>&1 || rc=$?
    local last # the verdict is the last line of this form, and nothing much follows it
    last=$(tail -n 5 "$log" | grep -E '^[0-9]+ passed, [0-9]+ failed' | tail -n 1) || last=
    if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed(,\ [0-9]+\ skipped)?$ ]]; then
        ok=${BASH_REMATCH[1]} bad=${BASH_REMATCH[2]} skipped=${BASH_REMATCH[3]}
        if [ "$rc" -ne 0 ] && [ "$bad" -eq 0 ]; then
            bad=1
            echo "$name ended with status $rc" >>"$log"
        elif [ $((ok + bad)) -eq 0 ]; then
            bad=1
            echo "$name tested nothing" >>"$log"
        fi
    else
        bad=1
        echo "$name ended without a result (status $rc)" >>"$log"
    fi
    printf '%-8s %5d ok %4d bad %5d s%s\n' "$name" "$ok" "$bad" $((SECONDS - t0)) "$skipped"
    [ "$bad" -eq 0 ] || tail -n 40 "$log" | sed 's/^/    | /'
    passed=$((passed + ok)) failed=$((failed + bad))
}

prepare
for suite in "${all[@]}"; do
    if wanted "$suite"; then one_suite "$suite"; fi
done
