# SPDX-License-Identifier: Apache-2.0
# Clients installed into the cache; sourced behind deploy/lib.sh.

# clients_venv FILE: a venv with FILE's packages; its path in $CLIENTS_VENV.
clients_venv() {
    local want log base=python3
    want=$(sha256sum <"$1" | cut -c 1-12)
    CLIENTS_VENV=$PRESSD_CACHE/clients-$want
    [ ! -f "$CLIENTS_VENV/.ready" ] || return 0
    python3 -c 'import venv, ensurepip' 2>/dev/null || base=/usr/bin/python3
    pd_say "installing $(basename "$1")"
    log=$CLIENTS_VENV.log
    rm -rf "$CLIENTS_VENV"
    mkdir -p "$PRESSD_CACHE"
    "$base" -m venv "$CLIENTS_VENV" >"$log" 2>&1 &&
        "$CLIENTS_VENV/bin/python" -m pip --disable-pip-version-check install -r "$1" >>"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; pd_die "the Python clients could not be installed; the log is in $log"; }
    : >"$CLIENTS_VENV/.ready"
}

clients_python() {
    clients_venv "$here/requirements.txt"
    export PRESSD_CLIENTS_PYTHON=$CLIENTS_VENV/bin/python
}

# node_modules beside a copy of package.json and of the scripts' folder link.
clients_node() {
    local want dir log
    command -v node >/dev/null && command -v npm >/dev/null || pd_need nodejs npm
    want=$(sha256sum <"$here/js/package.json" | cut -c 1-12)
    dir=$PRESSD_CACHE/clients-js-$want
    export PRESSD_CLIENTS_NODE=$dir
    [ ! -f "$dir/.ready" ] || return 0
    pd_say "installing js/package.json"
    log=$dir.log
    rm -rf "$dir"
    mkdir -p "$dir"
    cp "$here/js/package.json" "$dir"
    (cd "$dir" && npm install --no-audit --no-fund) >"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; pd_die "the JavaScript clients could not be installed; the log is in $log"; }
    : >"$dir/.ready"
}
