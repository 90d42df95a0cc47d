#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a reader should not have to check; needs a compiler and python3, no build.
cd "$(dirname "$0")/../.." && exec python3 tests/lint/lint.py
