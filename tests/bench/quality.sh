#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Quality of every press beside the dense cache, with controls: tests/bench/quality.sh [quality.py options]
#
# Installs what it needs (two public-domain texts, matplotlib), builds a release, and writes quality.csv, reads.csv,
# quality.md and quality.png to $OUT (default: tests/bench/results).  One thread, at the lowest priority; some ten
# minutes a model on a machine alone, with progress on standard error.  `--ratios 0.75` is a first look;
# `--resume FILE` goes on with the quality.csv of a run that was cut off.
set -euo pipefail
PRESSD_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$PRESSD_TOP"
. deploy/lib.sh
pd_need "${PRESSD_BUILD_PACKAGES[@]}" python3 python3-venv bible-kjv dict-devil libcmocka-dev
pd_model_smollm2
models=("$PD_MODEL")
pd_model_gemma3
models+=("$PD_MODEL")
pd_build "$PRESSD_TOP/build/release" server/pressd -Dbuildtype=release -Dtests=false
pd_build "$PRESSD_TOP/build/tests" tests/golden/golden_asked -Dwerror=true -Dtests=true # as tests/run.sh
. tests/bench/venv.sh
out=${OUT:-$PRESSD_TOP/tests/bench/results}
mkdir -p "$out" build
nice -n 19 "$venv/bin/python" tests/bench/quality.py --reads "$PRESSD_TOP/build/tests/tests/golden/golden_asked" \
    "${models[@]}" >build/reads-$$.csv
mv build/reads-$$.csv "$out/reads.csv"
new=build/quality-$$.csv # not over what --resume reads
PRESSD_BIN=${PRESSD_BIN:-$PRESSD_TOP/build/release/server/pressd} nice -n 19 "$venv/bin/python" tests/bench/quality.py \
    --reads-csv "$out/reads.csv" --markdown "$out/quality.md" --png "$out/quality.png" "$@" "${models[@]}" >"$new"
mv "$new" "$out/quality.csv"
pd_say "wrote $out/quality.csv, reads.csv, quality.md, quality.png"
