#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Grammars of random JSON schemas against jsonschema (test_schemas.py).  Ends in `N passed, N failed`.
exec "${PRESSD_PYTHON:-python3}" "$(dirname "$0")/test_schemas.py"
