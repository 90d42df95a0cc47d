#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The rules of the tree that a program can check; ends in `N passed, N failed`.

Each rule is a function over all files git knows (or, in a tree without git, all
files there are) and yields a line per violation; a rule with none has passed.
Rules about C look at the text without comments and strings.
"""
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import tempfile

RULES = []


def rule(f):
    RULES.append(f)
    return f


# ---- the files ----


def tree():
    git = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True)
    if git.returncode == 0:
        return sorted(p for p in git.stdout.splitlines() if os.path.isfile(p))
    found = []
    for top, dirs, names in os.walk("."):
        dirs[:] = [d for d in dirs if not d.startswith(("build", "."))]
        found += [os.path.relpath(os.path.join(top, n), ".") for n in names]
    return sorted(found)


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def bare(text):
    """C without comments and without what strings and characters hold; lines keep their numbers."""

    def blank(m):
        s = m.group(0)
        if s[0] == "/":
            return " " + "\n" * s.count("\n")
        return s[0] * 2

    return re.sub(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", blank, text, flags=re.S)


FILES = tree()
C = {p: read(p) for p in FILES if p.endswith((".c", ".h", ".inc"))}
SCRIPTS = [p for p in FILES if p.endswith((".sh", ".py")) or p == ".ci/run"]


def lines(pattern, text):
    for m in re.finditer(pattern, text, re.M):
        yield text.count("\n", 0, m.start()) + 1, m


# ---- rules about every file ----


@rule
def licence_line_comes_first():
    for p in list(C) + SCRIPTS + [p for p in FILES if p.endswith((".py", ".js"))]:
        if "SPDX-License-Identifier: Apache-2.0" not in "\n".join(read(p).split("\n")[:3]):
            yield f"{p}: no SPDX line at the top"


@rule
def no_marker_is_left():
    words = "TO" "DO|FIX" "ME|XX" "X|HA" "CK"
    for p in list(C) + SCRIPTS + [p for p in FILES if p.endswith(("meson.build", ".js", ".html"))]:
        for n, m in lines(rf"\b({words})\b", read(p)):
            yield f"{p}:{n}: {m.group(1)}"


@rule
def scripts_parse_and_can_run():
    for p in SCRIPTS:
        first = read(p).split("\n")[0]
        if first.startswith("#!") and not os.access(p, os.X_OK):
            yield f"{p}: begins with #! but is not executable"
        if p.endswith(".py"):
            try:
                compile(read(p), p, "exec")
            except SyntaxError as e:
                yield f"{p}: {e}"
        else:
            r = subprocess.run(["bash", "-n", p], capture_output=True, text=True)
            if r.returncode:
                yield r.stderr.strip()


# ---- rules about C ----


@rule
def c_files_have_one_job():
    for p, text in C.items():
        n, most = text.count("\n"), 1200 if p.startswith("tests/") else 800  # tables of cases run longer
        if n > most:
            yield f"{p}: {n} lines; more than {most} ask for a second file"


@rule
def c_files_are_plain_text():
    for p, text in C.items():
        for n, m in lines(r"\t|[ ]+$|\r", text):
            yield f"{p}:{n}: a tab, a carriage return or blanks at the end"
        if not text.endswith("\n"):
            yield f"{p}: no newline at the end"


@rule
def banned_functions_are_not_called():
    banned = "strcpy|strcat|sprintf|vsprintf|gets|strtok|alloca|mktemp|tmpnam|atoi|atol|atoll|atof"
    for p, text in C.items():
        for n, m in lines(rf"(?<![\w.>])({banned})\s*\(", bare(text)):
            yield f"{p}:{n}: {m.group(1)}; engine/base has a bounded way"


@rule
def library_code_neither_exits_nor_prints():
    for p, text in C.items():
        if not p.startswith(("engine/", "compression/", "config/")) or p.startswith("engine/base/log"):
            continue
        for n, m in lines(r"(?<![\w.>])(exit|_exit|abort|printf|puts|perror|pd_log)\s*\(", bare(text)):
            yield f"{p}:{n}: {m.group(1)} below server/"


# A folder may include itself and folders of a lower rank.
RANK = {
    "engine/base": 0,
    "engine/kernels": 1,
    "engine/gguf": 1,
    "engine/jinja": 1,
    "engine/tokenizer": 2,
    "engine/cache": 2,
    "compression": 3,
    "engine/grammar": 3,
    "engine/model": 3,
    "engine/run": 4,
    "server": 5,
}


def folder(path):
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "engine" else parts[0]


@rule
def includes_point_down():
    for p, text in C.items():
        here = folder(p)
        if here == "tests":
            continue
        for n, m in lines(r'^\s*#\s*include\s+"([^"]+)"', text):
            there = folder(m.group(1))
            if "/" not in m.group(1):
                continue  # made by meson: a .def table of the same folder
            if here == there or (here == "server" and there == "config"):
                continue
            if here == "config":
                ok = there == "engine/base"
            else:
                ok = here in RANK and there in RANK and RANK[there] < RANK[here]
            if not ok:
                yield f"{p}:{n}: {here}/ must not include {m.group(1)}"


LIBRARIES = {
    r"microhttpd\.h": ("server/",),
    r"uv\.h": ("server/",),
    r"jansson\.h": ("server/", "config/"),
    r"(cblas|lapacke)\.h": ("engine/", "compression/"),
    r"utf8proc\.h": ("engine/",),
}


@rule
def libraries_stay_in_their_folders():
    for p, text in C.items():
        if p.startswith("tests/"):
            continue
        for pattern, allowed in LIBRARIES.items():
            for n, m in lines(rf"^\s*#\s*include\s+[<\"]{pattern}", text):
                if not p.startswith(allowed):
                    yield f"{p}:{n}: only {' and '.join(allowed)} may see it"


@rule
def headers_are_guarded_by_their_path():
    for p, text in C.items():
        if not p.endswith(".h") or p.startswith("tests/"):
            continue
        want = "PD_" + re.sub(r"\W", "_", p).upper()
        if f"#ifndef {want}\n#define {want}\n" not in text:
            yield f"{p}: the include guard should be {want}"


@rule
def headers_compile_alone():
    headers = [p for p in C if p.endswith(".h") and not p.startswith("tests/")]
    flags = ["-std=gnu11", "-D_GNU_SOURCE", '-DPD_VERSION="0"', "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    cc = os.environ.get("CC", "cc").split()
    with tempfile.TemporaryDirectory() as tmp:
        # tables that meson makes are empty here: the header must do without entries
        defs = set(re.findall(r'#include "(\w+\.def)"', "\n".join(C.values())))
        for d in defs:
            open(os.path.join(tmp, d), "w").close()
        pkgs = ["libuv", "jansson", "libmicrohttpd", "openblas"]
        inc = subprocess.run(["pkg-config", "--cflags", *pkgs], capture_output=True, text=True).stdout.split()

        def one(p):
            unit = f'#include "{p}"\n#include "{p}"\ntypedef int pd_unit_not_empty;\n'
            r = subprocess.run([*cc, *flags, "-I.", f"-I{tmp}", *inc, "-fsyntax-only", "-xc", "-"],
                               input=unit, capture_output=True, text=True)
            return None if r.returncode == 0 else f"{p}: {r.stderr.strip().splitlines()[0]}"

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            yield from filter(None, pool.map(one, headers))


# ---- the harness itself ----


@rule
def the_counter_counts():
    """tests/count.py on hand-made records: what it must not miss."""
    ok = "[  PASSED  ] 3 test(s).\n"
    bad = "[  PASSED  ] 2 test(s).\n[  FAILED  ] 1 test(s), listed below:\n[  FAILED  ] some_test\n"
    cases = [
        ([("OK", ok, "")], "3 passed, 0 failed"),
        ([("OK", "", ok), ("OK", "no words", "")], "4 passed, 0 failed"),
        ([("FAIL", bad, "")], "2 passed, 1 failed"),
        ([("FAIL", ok, "ERROR: LeakSanitizer")], "3 passed, 1 failed"),
        ([("TIMEOUT", "", "")], "0 passed, 1 failed"),
        ([("SKIP", "", "")], "0 passed, 0 failed"),
        ([("OK", "7 passed, 0 failed\n", "")], "7 passed, 0 failed"),
        ([], "0 passed, 0 failed"),
    ]
    for records, want in cases:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            for result, out, err in records:
                f.write(json.dumps({"name": "x", "result": result, "returncode": 0, "stdout": out, "stderr": err}) + "\n")
            f.flush()
            r = subprocess.run([sys.executable, "tests/count.py", f.name], capture_output=True, text=True)
        if r.stdout.splitlines()[-1:] != [want]:
            yield f"tests/count.py: {records} gave {r.stdout!r}, not {want!r}"


def main():
    passed = failed = 0
    for check in RULES:
        found = list(check())
        for line in found[:20]:
            print(f"{check.__name__}: {line}")
        if len(found) > 20:
            print(f"{check.__name__}: and {len(found) - 20} more")
        if found:
            failed += 1
        else:
            passed += 1
            print(f"{check.__name__}: ok")
    print(f"{passed} passed, {failed} failed")
    return failed != 0


sys.exit(main())
