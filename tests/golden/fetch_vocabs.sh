#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Vocabulary-only GGUF files and published chat templates to judge against, into
# the folder given: they ship in the sources of PyPI's llama_cpp_python (77 MB,
# fetched by pip once; nothing is built), more templates in its trl (1 MB) and
# axolotl (2 MB).  Does nothing if the folder is full.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
version=0.3.36 trl=1.16.0 axolotl=0.19.0
mkdir -p "$1"
folder=$(cd "$1" && pwd)
[ -e "$folder/.complete-$version-$trl-$axolotl" ] && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PRESSD_PYTHON:-python3}
"$python" -m pip download --quiet --no-deps --no-binary llama_cpp_python --dest "$work" "llama_cpp_python==$version"
tar -xzf "$work"/llama_cpp_python-$version.tar.gz -C "$work" --wildcards \
    '*/vendor/llama.cpp/models/ggml-vocab-*' '*/vendor/llama.cpp/models/templates/*'
models=$work/llama_cpp_python-$version/vendor/llama.cpp/models
for name in gpt-2 llama-bpe qwen2 llama-spm phi-3 command-r starcoder refact qwen35; do
    cp "$models/ggml-vocab-$name.gguf" "$models/ggml-vocab-$name.gguf.inp" "$models/ggml-vocab-$name.gguf.out" "$folder/"
done
mkdir -p "$folder/templates"
cp "$models"/templates/*.jinja "$folder/templates/"

# of_wheel NAME VERSION FOLDER-IN-IT
of_wheel() {
    "$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$work" "$1==$2"
    mkdir -p "$folder/templates-$1"
    "$python" -m zipfile -e "$work/$1-$2"-*.whl "$work/$1"
    cp "$work/$1/$3"/*.jinja "$folder/templates-$1/"
}
of_wheel trl $trl trl/chat_templates
of_wheel axolotl $axolotl axolotl/utils/chat_templates/templates
touch "$folder/.complete-$version-$trl-$axolotl"
