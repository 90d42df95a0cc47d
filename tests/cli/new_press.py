# SPDX-License-Identifier: Apache-2.0
"""A new press is one file and one word: tried on a copy of the tree.

The copy gets compression/toy.c and the word; nothing else is touched.  The press must then be listed and be
tested by test_press_matrix, which names no press: with a fault in it that test must fail.
Compiled without optimisation, the library, pressd and one test program only.
"""
import os
import shutil
import subprocess
import tempfile

TOY = """\
/* SPDX-License-Identifier: Apache-2.0 */
/* toy: keep every period-th token first, then the newest. */
#include "compression/shared.h"

enum { PERIOD };

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score, pd_err *err) {
    const int32_t period = (int32_t)inst->p[PERIOD];
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < view->n_h[h]; i++) {
            const int32_t at = view->pos[h][i];
            score[h][i] = (float)at + (at % period ? 0.0f : 1e6f);
        }
    return PD_OK;
}

static const pd_param params[] = {
    [PERIOD] = {.name = "period", .type = PD_PARAM_INT, .def = 3, .min = 1, .max = 99, .doc = "distance of the tokens that stay"},
};

const pd_press pd_press_toy = {
    .name = "toy",
    .reference_class = "none",
    .kind = "scorer",
    .source = "tests/cli/new_press.py",
    .doc = "Keeps every third token.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP | PD_CAN_SCORE_ALONE,
    .score = score,
};
"""
# It claims SCORE_ALONE, but counts from the first slot it sees.
FAULT = ("const int32_t at = view->pos[h][i];", "const int32_t at = (int32_t)i;")
COPIED = ("compression", "config", "engine", "server", "tests", "meson.build", "meson_options.txt")


def command(*argv, cwd, want=0):
    r = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    out = r.stdout + r.stderr
    assert (r.returncode == 0) == (want == 0), f"{argv}: {r.returncode}\n{out[-3000:]}"
    return out


def write(tree, path, old, new):
    path = os.path.join(tree, path)
    with open(path) as f:
        text = f.read()
    assert text.count(old) == 1, f"{path}: {text.count(old)} times {old!r}"
    with open(path, "w") as f:
        f.write(text.replace(old, new))


def a_new_press_is_one_file_and_one_word():
    with tempfile.TemporaryDirectory(prefix="pressd-toy-") as tree:
        for name in COPIED:
            if os.path.isdir(name):
                shutil.copytree(name, os.path.join(tree, name), ignore=shutil.ignore_patterns("__pycache__", "results"))
            else:
                shutil.copy(name, tree)
        with open(os.path.join(tree, "compression", "toy.c"), "w") as f:
            f.write(TOY)
        write(tree, "compression/meson.build", "  'knorm',\n", "  'knorm',\n  'toy',\n")

        command("meson", "setup", "build", "-Dwerror=true", "-Doptimization=0", "-Db_ndebug=false", cwd=tree)
        command("ninja", "-C", "build", "server/pressd", "tests/unit/test_press_matrix", cwd=tree)
        listed = command("build/server/pressd", "presses", "--markdown", cwd=tree)
        assert "\n| `toy` | none | tests/cli/new_press.py | `period` 3 | Keeps every third token. |\n" in listed, listed
        command("build/tests/unit/test_press_matrix", cwd=tree)

        write(tree, "compression/toy.c", *FAULT)
        command("ninja", "-C", "build", "tests/unit/test_press_matrix", cwd=tree)
        said = command("build/tests/unit/test_press_matrix", cwd=tree, want=1)
        assert "toy" in said and "alone scores" in said, said[-2000:]
