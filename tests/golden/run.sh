#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Golden suite: the real server beside the torch reference's recorded numbers, exact (f32) and fast (int8).
#
#   PRESSD_BIN               the server's binary (build/server/pressd)
#   PRESSD_TEST_MODEL        SmolLM2-135M-Instruct Q4_1     PRESSD_TEST_MODEL_GEMMA  Gemma 3 270M Q4_K_M
#   PRESSD_PYTHON            python3 >= 3.9, standard library only but for the templates (jinja2)
#   PRESSD_TEST_VOCABS       a folder filled by fetch_vocabs.sh: published chat templates
#   PRESSD_GOLDEN_MODES      "f32 int8"
#   PRESSD_TEST_LONG         1: prompts of 3,000 tokens, longer walks, more texts too (some 20 minutes)
#   PRESSD_PROGRAMS          the folder of golden_*, if it is not where the build puts it beside PRESSD_BIN
#
# A model that is not given is skipped, and said so; with none at all the suite fails.
# Ends in `N passed, N failed`.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd) top=$(cd "$(dirname "$0")/../.." && pwd)
programs=${PRESSD_PROGRAMS:-$(dirname "${PRESSD_BIN:-build/server/pressd}")/../tests/golden}
python=${PRESSD_PYTHON:-python3}
passed=0 failed=0 models=0

# Run a checker and add its last line to the count.
tally() { # command ...
    local out code good=0 bad=1
    out=$("$@" 2>&1 | tee >(cat >&2))
    code=$?
    if [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        good=${BASH_REMATCH[1]} bad=${BASH_REMATCH[2]}
    elif [[ $out =~ ([0-9]+)\ checks,\ ([0-9]+)\ failures$ ]]; then
        bad=${BASH_REMATCH[2]} good=$((BASH_REMATCH[1] - bad))
    fi
    # a checker that says it is fine must also have ended well, and the server with it
    if [ $code != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
    passed=$((passed + good)) failed=$((failed + bad))
}

# A checker of goldens against a fresh server.
check() { # model mode program golden [server's options]
    tally "$python" "$here/with_server.py" "$1" --compute "$2" "${@:5}" -- "$python" "$here/$3" {url} --golden "$4" --mode "$2"
}

suite() { # name model
    if [ -z "$2" ]; then
        echo "skipped $1: no model file given"
        return
    fi
    models=$((models + 1))
    for mode in ${PRESSD_GOLDEN_MODES:-f32 int8}; do
        check "$2" "$mode" check_logits.py "$here/data/logits_$1.json.gz"
        # the presses' goldens are recorded and judged by their own program, per model and mode as well
        if [ -f "$here/check_presses.py" ]; then
            for g in "$here"/data/presses_"$1"*.json.gz "$here"/data/replays_"$1"*.json.gz; do
                [ -f "$g" ] && check "$2" "$mode" check_presses.py "$g"
            done
        fi
    done
}

# Presses whose data are drawn, imported and served: fastkvzip's gates, restorekv's rows and adapters.
imported() { # gates|restore model golden
    if [ -n "$2" ] && [ -f "$here/data/$3.json.gz" ]; then tally "$python" "$here/check_$1.py" "$2" "$here/data/$3.json.gz"; fi
}

# Small seeded models, one per architecture: made here, judged by recorded numbers (arch.py).
architectures() {
    local dir name args
    dir=$(mktemp -d) || return
    for name in $("$python" "$here/arch_models.py" --list); do
        read -r -a args <<<"$("$python" "$here/arch_models.py" --args "$name")"
        # if it fails, the server says so
        "$python" "$here/arch_models.py" "$name" "$dir/$name.gguf" "$dir/$name.safetensors"
        args+=(--press-data "$dir/$name.safetensors")
        check "$dir/$name.gguf" f32 check_logits.py "$here/data/arch_$name.json.gz" "${args[@]}"
        for kind in presses replays; do
            [ -f "$here/data/arch_${name}_$kind.json.gz" ] || continue
            check "$dir/$name.gguf" f32 check_presses.py "$here/data/arch_${name}_$kind.json.gz" "${args[@]}"
        done
        imported restore "$dir/$name.gguf" "arch_${name}_restore"
    done
    rm -rf "$dir"
    tally "$python" "$here/check_refused.py"
}

# Published chat templates by our interpreter and by Jinja2, and the calls that they write by our reader.
templates() {
    local vocabs=${PRESSD_TEST_VOCABS:-} tests script
    tests=$(dirname "${PRESSD_BIN:-build/server/pressd}")/../tests/unit
    if [ -z "$vocabs" ]; then
        echo "skipped templates: no PRESSD_TEST_VOCABS"
        return
    fi
    for script in test_templates.py:render_template test_calls.py:read_calls; do
        tally "$python" "$here/${script%:*}" "$tests/${script#*:}" "$vocabs"/templates*
    done
}

templates
architectures
suite smollm2 "${PRESSD_TEST_MODEL:-}"
suite gemma3 "${PRESSD_TEST_MODEL_GEMMA:-}"
for kind in gates restore; do
    imported "$kind" "${PRESSD_TEST_MODEL:-}" "${kind}_smollm2"
    imported "$kind" "${PRESSD_TEST_MODEL_GEMMA:-}" "${kind}_gemma3"
done
# What the quality of stores and readings is held to, in programs of their own beside PRESSD_BIN.
reads() { # MODEL values|flat|pages TEXT...; in f32, the README's numbers, minutes a text
    PRESSD_KV_COMPUTE=${PRESSD_TEST_LONG:+f32} tally "$programs/golden_reads" "$@"
}

# Data measured from the text that ships, judged on a licence: some five minutes.
measured() { # model
    local dir text=$top/config/examples/calibration.txt
    dir=$(mktemp -d) || return
    PRESSD_KV_COMPUTE=f32 tally "$programs/golden_kv_types" "$1" "$top/LICENSE" ${PRESSD_TEST_LONG:+"$top/engine/kernels/scalar.c"}
    "$PRESSD_BIN" calibrate -m "$1" --text "$text" -o "$dir/data" --only eigen,joint --tokens 16384 2>"$dir/log" >"$dir/energy" || cat "$dir/log" >&2
    tally "$python" "$here/check_energy.py" <"$dir/energy"
    tally "$programs/golden_kv_types" "$1" --press-data "$dir/data" "$top/LICENSE"
    tally "$programs/golden_sals" "$1" "$dir/data" "$top/LICENSE"
    "$PRESSD_BIN" calibrate -m "$1" --text "$text" -o "$dir/codes" --only codes --tokens 16384 2>"$dir/log" || cat "$dir/log" >&2
    tally "$programs/golden_codes" "$1" "$dir/codes" "$top/LICENSE"
    rm -rf "$dir"
}

if [ -n "${PRESSD_TEST_MODEL:-}" ]; then
    tally "$python" "$here/check_calibrate.py" "$PRESSD_TEST_MODEL"
    reads "$PRESSD_TEST_MODEL" values "$top/LICENSE" ${PRESSD_TEST_LONG:+"$top/engine/kernels/scalar.c"}
    reads "$PRESSD_TEST_MODEL" pages "$top/config/examples/calibration.txt"
    measured "$PRESSD_TEST_MODEL"
fi
if [ -n "${PRESSD_TEST_MODEL_GEMMA:-}" ] && [ -n "${PRESSD_TEST_LONG:-}" ]; then
    reads "$PRESSD_TEST_MODEL_GEMMA" flat "$top/LICENSE"
fi
if [ $models = 0 ]; then
    echo "set PRESSD_TEST_MODEL or PRESSD_TEST_MODEL_GEMMA to a GGUF file"
    failed=$((failed + 1))
fi
echo "$passed passed, $failed failed"
[ $failed = 0 ]
