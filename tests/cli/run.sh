#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The binary's small commands, the scripts and what the README says of them.
cd "$(dirname "$0")/../.." && exec python3 tests/cli/cli.py
