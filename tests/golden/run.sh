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
#   PRESSD_READS             likewise golden_reads
#   PRESSD_CODES             likewise golden_codes
#   PRESSD_KV_TYPES          golden_kv_types, if it is not where the build puts it beside PRESSD_BIN
#
# A model that is not given is skipped, and said so; with none at all the suite fails.
# Ends in `N passed, N failed`.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PRESSD_PYTHON:-python3}
passed=0 failed=0 models=0

# Run one checker against a fresh server and add its last line to the tally.
check() { # model mode program golden [server's options]
    local out
    out=$("$python" "$here/with_server.py" "$1" --compute "$2" "${@:5}" -- "$python" "$here/$3" {url} --golden "$4" --mode "$2" 2>&1 | tee >(cat >&2))
    local code=$?
    local good bad
    if [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        good=${BASH_REMATCH[1]} bad=${BASH_REMATCH[2]}
    elif [[ $out =~ ([0-9]+)\ checks,\ ([0-9]+)\ failures$ ]]; then
        bad=${BASH_REMATCH[2]} good=$((BASH_REMATCH[1] - bad))
    else
        good=0 bad=1
    fi
    # a checker that says it is fine must also have ended well, and the server with it
    if [ $code != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
    passed=$((passed + good)) failed=$((failed + bad))
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

# fastkvzip, whose gates are drawn, imported and served
gates() { # name model
    [ -n "$2" ] || return 0
    out=$("$python" "$here/check_gates.py" "$2" "$here/data/gates_$1.json.gz" 2>&1 | tee >(cat >&2))
    [[ $out =~ ([0-9]+)\ checks,\ ([0-9]+)\ failures$ ]] || out="1 checks, 1 failures"
    [[ $out =~ ([0-9]+)\ checks,\ ([0-9]+)\ failures$ ]] &&
        passed=$((passed + BASH_REMATCH[1] - BASH_REMATCH[2])) failed=$((failed + BASH_REMATCH[2]))
}

# restorekv, whose rows and adapters are drawn, imported and served
restore() { # name model
    [ -n "$2" ] && [ -f "$here/data/restore_$1.json.gz" ] || return 0
    out=$("$python" "$here/check_restore.py" "$2" "$here/data/restore_$1.json.gz" 2>&1 | tee >(cat >&2))
    [[ $out =~ ([0-9]+)\ checks,\ ([0-9]+)\ failures$ ]] || out="1 checks, 1 failures"
    [[ $out =~ ([0-9]+)\ checks,\ ([0-9]+)\ failures$ ]] &&
        passed=$((passed + BASH_REMATCH[1] - BASH_REMATCH[2])) failed=$((failed + BASH_REMATCH[2]))
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
        restore "$name" "$dir/$name.gguf"
    done
    rm -rf "$dir"
    local out
    out=$("$python" "$here/check_refused.py" 2>&1 | tee >(cat >&2))
    [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] || out="0 passed, 1 failed"
    [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] && passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
}

# Published chat templates by our interpreter and by Jinja2, and the calls that they write by our reader.
templates() {
    local out vocabs=${PRESSD_TEST_VOCABS:-} tests script
    tests=$(dirname "${PRESSD_BIN:-build/server/pressd}")/../tests/unit
    if [ -z "$vocabs" ]; then
        echo "skipped templates: no PRESSD_TEST_VOCABS"
        return
    fi
    for script in test_templates.py:render_template test_calls.py:read_calls; do
        out=$("$python" "$here/${script%:*}" "$tests/${script#*:}" "$vocabs"/templates* 2>&1 | tee >(cat >&2))
        [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] || out="0 passed, 1 failed"
        [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] && passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
    done
}

templates
architectures
suite smollm2 "${PRESSD_TEST_MODEL:-}"
suite gemma3 "${PRESSD_TEST_MODEL_GEMMA:-}"
gates smollm2 "${PRESSD_TEST_MODEL:-}"
gates gemma3 "${PRESSD_TEST_MODEL_GEMMA:-}"
restore smollm2 "${PRESSD_TEST_MODEL:-}"
restore gemma3 "${PRESSD_TEST_MODEL_GEMMA:-}"
if [ -n "${PRESSD_TEST_MODEL:-}" ]; then
    out=$("$python" "$here/check_calibrate.py" "$PRESSD_TEST_MODEL" 2>&1 | tee >(cat >&2))
    [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] || out="0 passed, 1 failed"
    [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] && passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
fi
if [ -n "${PRESSD_TEST_MODEL:-}" ]; then
    kv_types=${PRESSD_KV_TYPES:-$(dirname "$PRESSD_BIN")/../tests/golden/golden_kv_types} top=$here/../..
    out=$(PRESSD_KV_COMPUTE=f32 "$kv_types" "$PRESSD_TEST_MODEL" "$top/LICENSE" ${PRESSD_TEST_LONG:+"$top/engine/kernels/scalar.c"} 2>&1 | tee >(cat >&2))
    [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] || out="0 passed, 1 failed"
    [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] && passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
fi
reads() { # MODEL values|flat|pages TEXT...; in f32, the README's numbers, minutes a text
    out=$(PRESSD_KV_COMPUTE=${PRESSD_TEST_LONG:+f32} "${PRESSD_READS:-$(dirname "$PRESSD_BIN")/../tests/golden/golden_reads}" "$@" 2>&1 | tee >(cat >&2))
    [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] || out="0 passed, 1 failed"
    [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] && passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
}
if [ -n "${PRESSD_TEST_MODEL:-}" ]; then
    reads "$PRESSD_TEST_MODEL" values "$here/../../LICENSE" ${PRESSD_TEST_LONG:+"$here/../../engine/kernels/scalar.c"}
    reads "$PRESSD_TEST_MODEL" pages "$here/../../compression/README.md"
fi
if [ -n "${PRESSD_TEST_MODEL_GEMMA:-}" ] && [ -n "${PRESSD_TEST_LONG:-}" ]; then
    reads "$PRESSD_TEST_MODEL_GEMMA" flat "$here/../../LICENSE"
fi
# Keys and values in fewer numbers, their bases measured on our own words and judged on a licence: some three minutes.
if [ -n "${PRESSD_TEST_MODEL:-}" ]; then
    dir=$(mktemp -d)
    cat "$top"/*.md "$top"/compression/README.md "$top"/tests/*/README.md >"$dir/text"
    "$PRESSD_BIN" calibrate -m "$PRESSD_TEST_MODEL" --text "$dir/text" -o "$dir/data" --only eigen,joint --tokens 16384 2>"$dir/log" >"$dir/energy" || cat "$dir/log" >&2
    out=$("$python" "$here/check_energy.py" <"$dir/energy" 2>&1 | tee >(cat >&2))
    [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] || out="0 passed, 1 failed"
    [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] && passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
    for run in "$kv_types $PRESSD_TEST_MODEL --press-data" "${PRESSD_SALS:-$(dirname "$PRESSD_BIN")/../tests/golden/golden_sals} $PRESSD_TEST_MODEL"; do
        out=$($run "$dir/data" "$top/LICENSE" 2>&1 | tee >(cat >&2))
        [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] || out="0 passed, 1 failed"
        [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] && passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
    done
    rm -rf "$dir"
fi
# Keys as product codes, their books made from our own words and judged on a licence: some two minutes.
if [ -n "${PRESSD_TEST_MODEL:-}" ]; then
    dir=$(mktemp -d)
    cat "$top"/*.md "$top"/compression/README.md "$top"/tests/*/README.md >"$dir/text"
    "$PRESSD_BIN" calibrate -m "$PRESSD_TEST_MODEL" --text "$dir/text" -o "$dir/data" --only codes --tokens 16384 2>"$dir/log" || cat "$dir/log" >&2
    out=$("${PRESSD_CODES:-$(dirname "$PRESSD_BIN")/../tests/golden/golden_codes}" "$PRESSD_TEST_MODEL" "$dir/data" "$top/LICENSE" 2>&1 | tee >(cat >&2))
    [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] || out="0 passed, 1 failed"
    [[ $out =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]] && passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
    rm -rf "$dir"
fi
if [ $models = 0 ]; then
    echo "set PRESSD_TEST_MODEL or PRESSD_TEST_MODEL_GEMMA to a GGUF file"
    failed=$((failed + 1))
fi
echo "$passed passed, $failed failed"
[ $failed = 0 ]
