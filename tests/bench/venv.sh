# SPDX-License-Identifier: Apache-2.0
# The pictures' venv, for run.sh and quality.sh: one per content of requirements.txt, in the cache, whole or
# not there.  To be sourced after deploy/lib.sh; its python is $venv/bin/python.
venv=$PRESSD_CACHE/bench-venv-$(sha256sum <tests/bench/requirements.txt | cut -c 1-12)
if [ ! -f "$venv/.ready" ]; then
    pd_say "installing tests/bench/requirements.txt"
    rm -rf "$venv"
    mkdir -p "$PRESSD_CACHE"
    base=python3
    python3 -c 'import venv, ensurepip' 2>/dev/null || base=/usr/bin/python3
    "$base" -m venv "$venv"
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet -r tests/bench/requirements.txt >&2
    : >"$venv/.ready"
fi
