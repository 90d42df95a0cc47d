#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Speed and memory beside llama.cpp as CSV: tests/bench/run.sh [bench.py options] > result.csv
#
#   PRESSD_BIN (build/server/pressd), PRESSD_TEST_MODEL, PRESSD_TEST_MODEL_GEMMA
#   PEER_BIN        folder with llama-bench; else PRESSD_PYTHON's llama_cpp package; else ours alone
#   PRESSD_PYTHON   python3
#
# Nothing else should run meanwhile; what the machine did is in the header's load figures.
set -eu
models=()
for m in "${PRESSD_TEST_MODEL:-}" "${PRESSD_TEST_MODEL_GEMMA:-}"; do
    if [ -n "$m" ]; then models+=("$m"); fi
done
[ ${#models[@]} -gt 0 ] || { echo "set PRESSD_TEST_MODEL or PRESSD_TEST_MODEL_GEMMA to a GGUF file" >&2; exit 2; }
exec "${PRESSD_PYTHON:-python3}" "$(dirname "$0")/bench.py" "$@" "${models[@]}"
