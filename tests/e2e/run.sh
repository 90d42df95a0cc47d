#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# End to end: the real server on the real models, driven by OpenAI's client, raw HTTP and a Prometheus.
#
#   PRESSD_BIN, PRESSD_TEST_MODEL (SmolLM2), PRESSD_TEST_MODEL_GEMMA, PRESSD_PYTHON (with the openai package)
#   PRESSD_TEST_SERVER_ARGS   further arguments of every server, e.g. "--cpu-mask avx2"
#   run.sh [NAME ...]         only the cases whose name contains one of these
#
# Ends in `N passed, N failed`.
exec "${PRESSD_PYTHON:-python3}" "$(dirname "$0")/run.py" "$@"
