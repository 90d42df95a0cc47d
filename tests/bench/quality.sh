#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Quality of every press beside the dense cache, with controls: tests/bench/quality.sh [quality.py options]
#
# Installs what it needs (two public-domain texts, matplotlib), builds a release, and writes quality.csv,
# quality.md and quality.png to $OUT (default: tests/bench/results).  About twenty minutes a model on two cores;
# `--ratios 0.5 --windows 1` is a first look.
set -euo pipefail
PRESSD_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$PRESSD_TOP"
. deploy/lib.sh
pd_need "${PRESSD_BUILD_PACKAGES[@]}" python3 python3-matplotlib bible-kjv dict-devil
pd_model_smollm2
models=("$PD_MODEL")
pd_model_gemma3
models+=("$PD_MODEL")
pd_build "$PRESSD_TOP/build/release" server/pressd -Dbuildtype=release -Dtests=false
out=${OUT:-$PRESSD_TOP/tests/bench/results}
mkdir -p "$out"
PRESSD_BIN=${PRESSD_BIN:-$PRESSD_TOP/build/release/server/pressd} /usr/bin/python3 tests/bench/quality.py \
    --markdown "$out/quality.md" --png "$out/quality.png" "$@" "${models[@]}" >"$out/quality.csv"
pd_say "wrote $out/quality.csv, quality.md, quality.png"
