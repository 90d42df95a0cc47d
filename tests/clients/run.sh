#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Clients as their users have them, unmodified: what they send is served and what they
# read is right.  Python's are in a venv (requirements.txt), JavaScript's under
# node_modules (js/package.json), both in the cache, whole or not there.
#
#   PRESSD_BIN, PRESSD_TEST_MODEL   as in tests/run.sh
#   run.sh [NAME ...]               only the cases whose name contains one of these
#
# Ends in `N passed, N failed`.  Load tools, the evaluation harness and the long run
# over /openapi.json are in long.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../deploy/lib.sh"
. "$here/lib.sh"
clients_python
clients_node
exec "$PRESSD_CLIENTS_PYTHON" "$here/run.py" "$@"
