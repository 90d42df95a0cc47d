#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone to a running server: packages, build, model, `pressd serve`.
# Each step is skipped when it is done, so the second run starts at once.
set -euo pipefail
PRESSD_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$PRESSD_TOP/deploy/lib.sh"

case ${1-} in
-h | --help)
    cat <<'TXT'
usage: deploy/run.sh [OPTIONS of pressd serve]

Installs what is missing (Debian packages; as root or with sudo), builds pressd,
fetches a small model (SmolLM2-135M-Instruct, 92 MB, checked by its sha256) and
serves it on 127.0.0.1:8080. All options are handed to `pressd serve`; with
--model FILE (or a model in the settings file or in PRESSD_MODEL) nothing is
fetched.

  deploy/run.sh --port 9000
  deploy/run.sh --model other.gguf --ctx-size 4096

PRESSD_BUILD      build folder (build)
XDG_CACHE_HOME    where models are kept: $XDG_CACHE_HOME/pressd (~/.cache/pressd)

After the build, `build/server/pressd help --options` lists the settings.
TXT
    exit 0
    ;;
esac

build=${PRESSD_BUILD:-$PRESSD_TOP/build}
pd_need "${PRESSD_BUILD_PACKAGES[@]}"
pd_build "$build" server/pressd -Dbuildtype=release -Dtests=false
pressd=$build/server/pressd

# Wrong options are found before anything is downloaded.
settings=$("$pressd" config "$@")
if ! grep -q '^  "model":' <<<"$settings"; then
    pd_model_smollm2
    grep -q '^  "alias":' <<<"$settings" || set -- --alias smollm2-135m-instruct "$@"
    set -- --model "$PD_MODEL" "$@"
fi
exec "$pressd" serve "$@"
