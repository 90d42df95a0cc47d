#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# pressd beside llama.cpp: installs what it needs, builds both, measures, and writes the tables and pictures.
#
#   tests/bench/run.sh                     everything: an hour or two on two cores
#   tests/bench/run.sh --quick             the main rows, two rounds
#   tests/bench/run.sh --groups depth,ttft --rounds 5     some rows; `--help` lists groups and options
#
# Results are in build/bench-results (--out FOLDER): samples.csv and runs.jsonl, to which every run adds, and made
# of all that is there table.csv, table.md, depth.png, length.png, streams.png.
#
#   PRESSD_BIN            a built pressd instead of build/bench's
#   PRESSD_BENCH_MODELS   GGUF files, separated by spaces, instead of SmolLM2-135M and Gemma 3 270M
#   PEER_BIN              folder with llama-bench, llama-batched-bench and llama-server instead of peer.sh's build;
#                         `none` measures pressd alone
#   PRIO=1                top priority, so that other work on the machine takes little from the steps (needs root)
set -euo pipefail
PRESSD_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$PRESSD_TOP"
. deploy/lib.sh
case " $* " in *" --help "* | *" -h "*)
    sed -n '3,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exec python3 tests/bench/bench.py --help
    ;;
esac

out=build/bench-results args=()
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=$2; shift 2 ;;
    --out=*) out=${1#--out=}; shift ;;
    *) args+=("$1"); shift ;;
    esac
done

pd_need "${PRESSD_BUILD_PACKAGES[@]}" libcmocka-dev python3 python3-venv
pd_build "$PRESSD_TOP/build/bench" all -Dtests=true
export PRESSD_BIN=${PRESSD_BIN:-$PRESSD_TOP/build/bench/server/pressd}
export PRESSD_BENCH_LIMITS=$PRESSD_TOP/build/bench/tests/bench/bench_limits

if [ -n "${PRESSD_BENCH_MODELS:-}" ]; then
    read -ra models <<<"$PRESSD_BENCH_MODELS"
else
    pd_model_smollm2
    models=("$PD_MODEL")
    pd_model_gemma3
    models+=("$PD_MODEL")
fi

. tests/bench/venv.sh

if [ "${PEER_BIN:-}" = none ]; then
    args+=(--no-peer)
else
    PEER_BIN=$(tests/bench/peer.sh) # a failure ends this script
    export PEER_BIN
fi

# Where the kernel groups tasks by session (sched_autogroup), the group's nice counts and a task's own does not.
first=()
if [ "${PRIO:-0}" = 1 ]; then
    first=(setsid -w bash -c 'echo -19 >/proc/self/autogroup || true; exec nice -n -19 "$@"' _)
fi
"${first[@]}" python3 tests/bench/bench.py --out "$out" "${args[@]}" "${models[@]}"
python3 tests/bench/report.py "$out" --models "$(dirname "${models[0]}")"
"$venv/bin/python" tests/bench/plot.py "$out"
pd_say "written to $out: samples.csv, table.csv, table.md and the pictures"
