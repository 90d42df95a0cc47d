#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The peer: prints a folder with llama-bench, llama-batched-bench and llama-server, built once for this CPU from
# the sources that ship in PyPI's llama_cpp_python (77 MB; 10 to 20 minutes on two cores) and kept in the cache
# folder under its version and flags.  PEER_BIN names a folder of your own instead; PEER_CMAKE holds further
# options, such as "-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS", for a build of its own.
#
# A fair peer has every instruction set it can use and none that hurts it, so the flags are llama.cpp's own list
# for a CPU of this kind, each one only if the kernel reports it, instead of the compiler's native guess:
#   - AVX512-FP16 stays off: with it ggml's f16 step is wider than a head of 64, whose attention then runs scalar;
#   - GCC before 13 drops stores in front of ldtilecfg, so an AMX build needs the barrier that is put in below.
set -euo pipefail
PRESSD_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$PRESSD_TOP/deploy/lib.sh"

version=0.3.36
tools=(llama-bench llama-batched-bench llama-server)

whole() {
    local t
    for t in "${tools[@]}"; do [ -x "$1/$t" ] || return 1; done
}

if [ -n "${PEER_BIN:-}" ]; then
    whole "$PEER_BIN" || pd_die "PEER_BIN=$PEER_BIN lacks one of: ${tools[*]}"
    echo "$PEER_BIN"
    exit 0
fi

# GGML_X ON or OFF for each flag of ggml's x86 list, by the kernel's names.
flags=()
isa() {
    local name=$1 f have=ON
    shift
    for f in "$@"; do case " $cpu " in *" $f "*) ;; *) have=OFF ;; esac; done
    flags+=("-DGGML_$name=$have")
}
if [ "$(uname -m)" = x86_64 ]; then
    cpu=$(sed -n '/^flags/{s/.*: //p;q}' /proc/cpuinfo)
    flags+=(-DGGML_NATIVE=OFF)
    isa SSE42 sse4_2
    isa AVX avx
    isa F16C f16c
    isa FMA fma
    isa BMI2 bmi2
    isa AVX2 avx2
    isa AVX_VNNI avx_vnni
    isa AVX512 avx512f avx512cd avx512bw avx512dq avx512vl
    isa AVX512_VBMI avx512vbmi
    isa AVX512_VNNI avx512_vnni
    isa AVX512_BF16 avx512_bf16
    isa AMX_TILE amx_tile
    isa AMX_INT8 amx_int8
else
    flags+=(-DGGML_NATIVE=ON)
fi
flags+=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
    -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DGGML_CCACHE=OFF)
read -ra more <<<"${PEER_CMAKE:-}"
flags+=("${more[@]}")

key=$(printf '%s\n' "$version" "${flags[@]}" "$(cc --version 2>/dev/null | head -n 1)" | sha256sum | cut -c 1-12)
folder=$PRESSD_CACHE/llama.cpp-$version-$key
mkdir -p "$PRESSD_CACHE"
exec 6>"$folder.lock"
flock 6
if whole "$folder"; then
    echo "$folder"
    exit 0
fi

pd_need g++ cmake ninja-build
pd_need_pip
work=$folder.work
mkdir -p "$work"
source=$work/llama_cpp_python-$version/vendor/llama.cpp
if [ ! -f "$work/.unpacked" ]; then
    pd_say "downloading the sources of llama_cpp_python $version (77 MB)"
    "$PD_PIP" -m pip --disable-pip-version-check download --quiet --no-deps --no-binary :all: --dest "$work" \
        "llama_cpp_python==$version" >&2 </dev/null || pd_die "cannot download llama_cpp_python $version"
    tar -xzf "$work/llama_cpp_python-$version.tar.gz" -C "$work"
    rm "$work/llama_cpp_python-$version.tar.gz"
    case " ${flags[*]} " in *AMX_TILE=ON*)
        sed -i 's/^\( *\)_tile_loadconfig(&tc);/\1__asm__ volatile("" :: "r"(\&tc) : "memory");\n&/' \
            "$source/ggml/src/ggml-cpu/amx/mmq.cpp" ;;
    esac
    touch "$work/.unpacked"
fi
log=$work/build.log
cmake -G Ninja -S "$source" -B "$work/build" "${flags[@]}" >"$log" 2>&1 || { tail -n 40 "$log" >&2; pd_die "cmake failed"; }
pd_say "building llama.cpp with ${flags[*]}"
# One line for each twentieth of the work; everything is in the log.
NINJA_STATUS='[%p %e s] ' ninja -C "$work/build" "${tools[@]}" 2>&1 </dev/null | tee -a "$log" |
    awk '/^\[ *[0-9]+%/ { p = substr($0, 2) + 0; if (p >= next_p) { sub(/\].*/, "]"); print "pressd: llama.cpp " $0; next_p = p + 5; fflush() } }' >&2 ||
    { tail -n 40 "$log" >&2; pd_die "the build of llama.cpp failed; the whole log is in $log"; }
mkdir -p "$folder"
for t in "${tools[@]}"; do cp "$work/build/bin/$t" "$folder/$t"; done
printf '%s\n' "llama_cpp_python $version" "${flags[@]}" >"$folder/flags.txt"
"$folder/llama-bench" --version >>"$folder/flags.txt" 2>&1 || true
rm -rf "$work"
echo "$folder"
