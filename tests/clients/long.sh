#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What is too heavy for every run: schemathesis with 2,000 requests drawn per operation,
# guidellm and aiperf as load, and lm-evaluation-harness on a task of our own beside
# transformers on the same weights, dense and under a press.  Half an hour and some
# gigabytes of packages.
#
#   PRESSD_BIN, PRESSD_TEST_MODEL   as in tests/run.sh; PRESSD_PYTHON is not needed
#   long.sh [schemathesis] [load] [harness]     these alone
#
# vLLM's own serve benchmark is not here.  Its wheel (0.33.0, 336 MB) wants CUDA's libraries by its pins; installed
# alone (--no-deps) beside torch and transformers, `vllm.benchmarks.serve` is imported once pybase64, cbor2, msgspec,
# pyzmq, oss-harmony, pillow, ijson, xgrammar, apache-tvm-ffi and llguidance are there too, and goes on without its own
# compiled part (vllm._C).  It has not been run against this server; what it sends is in tests/http/test_wire.py.
# Ends in `N passed, N failed`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../deploy/lib.sh"
. "$here/lib.sh"
[ $# -gt 0 ] || set -- schemathesis load harness
work=$(mktemp -d) server=
passed=0 failed=0
trap '[ -z "$server" ] || kill "$server" || true; rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OPENAI_API_KEY=none TOKENIZERS_PARALLELISM=false

verdict() { # NAME COMMAND...
    if "${@:2}"; then passed=$((passed + 1)); echo "ok $1"; else failed=$((failed + 1)); echo "FAIL $1"; fi
}

serve() { # further arguments of the server
    port=$((20000 + RANDOM % 20000))
    env -u PRESSD_TEST_MODEL -u PRESSD_BIN -u PRESSD_PYTHON -u PRESSD_CACHE "$PRESSD_BIN" serve --model "$PRESSD_TEST_MODEL" \
        --host 127.0.0.1 --port "$port" "$@" >"$work/server.log" 2>&1 &
    server=$!
    until curl -sf "127.0.0.1:$port/readyz" >/dev/null; do
        kill -0 "$server" || { tail "$work/server.log" >&2; exit 1; }
        sleep 0.2
    done
}
stop() { kill "$server"; wait "$server" || true; server=; }

schemathesis() {
    PRESSD_SCHEMATHESIS_EXAMPLES=2000 "$here/run.sh" test_what_the_document_says
}

guidellm() {
    "$CLIENTS_VENV/bin/guidellm" run --backend "kind=openai_http,target=http://127.0.0.1:$port,model=any" \
        --profile kind=concurrent,streams=2 --constraint kind=max_requests,count=6 \
        --data kind=synthetic_text,prompt_tokens=64,output_tokens=12 --tokenizer "kind=huggingface_auto,model=$work/tokenizer" \
        --output "kind=json,path=$work/guidellm.json" --disable-console-interactive >"$work/guidellm.log" 2>&1 &&
        python3 "$here/harness/check.py" guidellm "$work/guidellm.json" 6 12 || { tail -n 20 "$work/guidellm.log"; return 1; }
}

aiperf() { # offline it takes a tokenizer from Hugging Face's cache alone, so ours is put into one
    local hub=$work/hf/hub/models--tests--tokenizer
    mkdir -p "$hub/refs" "$hub/snapshots"
    cp -r "$work/tokenizer" "$hub/snapshots/0000000000000000000000000000000000000000"
    printf %s 0000000000000000000000000000000000000000 >"$hub/refs/main"
    HF_HOME=$work/hf "$CLIENTS_VENV/bin/aiperf" profile --model any --url "http://127.0.0.1:$port" --endpoint-type completions --streaming \
        --tokenizer tests/tokenizer --request-count 6 --concurrency 2 --isl 64 --osl 12 \
        --extra-inputs ignore_eos:true --artifact-dir "$work/aiperf" --ui none >"$work/aiperf.log" 2>&1 &&
        python3 "$here/harness/check.py" aiperf "$work/aiperf" 6 12 || { tail -n 30 "$work/aiperf.log"; return 1; }
}

load() {
    clients_venv "$here/requirements-long.txt"
    "$CLIENTS_VENV/bin/python" "$here/harness/tokenizer.py" "$PRESSD_TEST_MODEL" "$work/tokenizer"
    serve
    verdict guidellm guidellm
    clients_venv "$here/requirements-aiperf.txt"
    verdict aiperf aiperf
    stop
}

evaluate() { # FOLDER_OF_THE_TASK OUT ARGUMENTS...
    (cd "$1" && "$CLIENTS_VENV/bin/lm_eval" --tasks pressd_facts --include_path . --log_samples --output_path "${@:2}") >"$work/eval.log" 2>&1 ||
        { tail -n 20 "$work/eval.log"; return 1; }
}

harness() {
    clients_venv "$here/requirements-long.txt"
    "$CLIENTS_VENV/bin/python" "$here/harness/tokenizer.py" "$PRESSD_TEST_MODEL" "$work/tokenizer"
    python3 "$here/harness/facts.py" "$work/facts.jsonl" "$work/preface"
    cp "$here/harness/facts.yaml" "$work"
    serve --compute f32
    local ask=tokenizer_backend=huggingface,tokenizer=$work/tokenizer,tokenized_requests=True,num_concurrent=2,max_length=2048
    verdict 'harness on the server' evaluate "$work" "$work/ours" --model local-completions --model_args "model=any,base_url=http://127.0.0.1:$port/v1/completions,$ask" --batch_size 8
    stop
    verdict 'harness on transformers' evaluate "$work" "$work/theirs" --model hf --device cpu --batch_size 1 --model_args \
        "pretrained=$(dirname "$PRESSD_TEST_MODEL"),gguf_file=$(basename "$PRESSD_TEST_MODEL"),tokenizer=$work/tokenizer,dtype=float32"
    verdict 'they agree' python3 "$here/harness/check.py" harness "$work/ours" "$work/theirs"

    # The harness sends no field of its own, so the press is the server's default and its scope, one preface of the task.
    mkdir "$work/pressed"
    cp "$work/facts.jsonl" "$work/pressed"
    { cat "$here/harness/facts.yaml"; printf 'description: %s\n' "$(python3 -c 'import json, sys; print(json.dumps(open(sys.argv[1]).read()))' "$work/preface")"; } \
        >"$work/pressed/facts.yaml"
    local n
    n=$("$CLIENTS_VENV/bin/python" -c 'import sys, transformers
print(len(transformers.AutoTokenizer.from_pretrained(sys.argv[1]).encode(open(sys.argv[2]).read())))' "$work/tokenizer" "$work/preface")
    serve --compute f32 --compression "{\"press\": \"knorm\", \"ratio\": 0.2, \"scope\": {\"context_tokens\": $n}}"
    verdict 'harness under a press' evaluate "$work/pressed" "$work/under" --model local-completions \
        --model_args "model=any,base_url=http://127.0.0.1:$port/v1/completions,$ask" --batch_size 8
    curl -s "127.0.0.1:$port/metrics" >"$work/metrics"
    stop
    verdict 'the press in torch' "$CLIENTS_VENV/bin/python" "$here/harness/pressed.py" "$PRESSD_TEST_MODEL" "$work/tokenizer" \
        "$work/under" "$work/preface" 0.2 "$work/pressed.json"
    verdict 'they agree under the press' python3 "$here/harness/check.py" pressed "$work/under" "$work/pressed.json" "$work/metrics"
}

for part in "$@"; do
    case $part in
    schemathesis) verdict schemathesis schemathesis ;;
    load | harness) "$part" ;;
    *) pd_die "no part named '$part'; there are: schemathesis load harness" ;;
    esac
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
