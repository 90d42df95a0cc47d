# SPDX-License-Identifier: Apache-2.0
"""Start a pressd, talk to it, stop it: what the golden, e2e and bench programs share.  Standard library only.

    with Server("smollm2.gguf", "--threads", "2") as s:
        status, headers, body = s.post("/v1/completions", {"prompt": "Hi", "max_tokens": 4})
        for t, event in s.stream("/v1/completions", {...}): ...

The binary is PRESSD_BIN (default build/server/pressd).  Servers listen on 127.0.0.1 on a port the kernel
picked, so suites can run side by side.  A server that dies or hangs shows the end of its log.  Time-outs are
PRESSD_TEST_PATIENCE (default 1) times as long as written: a server under sanitizers takes several times its time.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


PATIENCE = float(os.environ.get("PRESSD_TEST_PATIENCE") or 1)


def binary():
    return os.environ.get("PRESSD_BIN") or os.path.join(ROOT, "build", "server", "pressd")


def model_path(kind="smollm2"):
    """The test model of a kind (smollm2, gemma3), or None when the environment names none."""
    return os.environ.get({"smollm2": "PRESSD_TEST_MODEL", "gemma3": "PRESSD_TEST_MODEL_GEMMA"}[kind]) or None


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class ServerDied(Exception):
    pass


class Server:
    """A running `pressd serve`; further arguments go to it as they are."""

    def __init__(self, model, *args, timeout=120, env=None):
        self.model, self.args, self.timeout = model, args, timeout * PATIENCE
        self.env = {**os.environ, **(env or {})}
        for name in [n for n in self.env if n.startswith("PRESSD_")]:  # settings of the tests, not of the server
            del self.env[name]
        self.log = tempfile.NamedTemporaryFile(prefix="pressd-", suffix=".log", delete=False)
        self.process = None
        self.port = 0

    def __enter__(self):
        return self if self.process else self.start()

    def __exit__(self, *exc):
        self.stop()

    def start(self):
        try:
            return self._start()
        except BaseException:
            self.kill()
            raise

    ready_path = "/readyz"

    def command(self):
        return [binary(), "serve", "--model", self.model, "--host", "127.0.0.1", "--port", str(self.port), *self.args]

    def launch(self):
        """Start the process and return at once."""
        self.port = free_port()
        self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        env=self.env)

    def _start(self):
        self.launch()
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise ServerDied(f"ended with {self.process.returncode}: {self.process.args}\n{self.log_tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get(self.ready_path, timeout=2)[0] == 200:
                    return self
            time.sleep(0.02)
        raise ServerDied(f"not ready after {self.timeout} s: {self.process.args}\n{self.log_tail()}")

    def log_tail(self, n=4000):
        with open(self.log.name, "rb") as f:
            return f.read()[-n:].decode("utf-8", "replace")

    def stop(self, sig=signal.SIGTERM, wait=60):
        """Ask it to end; the exit code, or None when it had to be killed."""
        if self.process is None or self.process.poll() is not None:
            code = self.process.returncode if self.process else None
        else:
            self.process.send_signal(sig)
            try:
                code = self.process.wait(wait * PATIENCE)
            except subprocess.TimeoutExpired:
                code = None
        self.kill()
        return code

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.log.name)

    # ---- requests: (status, headers with lower-case names, body) ----

    def connect(self, timeout=120):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout * PATIENCE)

    def request(self, method, path, body=None, headers=None, timeout=120):
        c = self.connect(timeout)
        try:
            c.request(method, path, body, headers or {})
            r = c.getresponse()
            data = r.read()
            heads = {k.lower(): v for k, v in r.getheaders()}
            if "json" in heads.get("content-type", "") and data:
                data = json.loads(data)
            return r.status, heads, data
        finally:
            c.close()

    def get(self, path, **kw):
        return self.request("GET", path, **kw)

    def post(self, path, body, headers=None, **kw):
        raw = body if isinstance(body, (bytes, str)) else json.dumps(body)
        return self.request("POST", path, raw, {"Content-Type": "application/json", **(headers or {})}, **kw)

    def ask(self, path, body, **kw):
        """POST that must succeed; the body alone."""
        status, _, reply = self.post(path, body, **kw)
        if status != 200:
            raise AssertionError(f"POST {path}: HTTP {status}: {reply}")
        return reply

    def stream(self, path, body, timeout=120):
        """POST with stream: yields (monotonic time, event) for each SSE event; the last event is "[DONE]"."""
        c = self.connect(timeout)
        try:
            c.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
            r = c.getresponse()
            if r.status != 200:
                raise AssertionError(f"POST {path}: HTTP {r.status}: {r.read()!r}")
            yield from sse_events(r)
        finally:
            c.close()

    # ---- looking in from outside ----

    def metrics_text(self):
        status, _, data = self.get("/metrics")
        if status != 200:
            raise AssertionError(f"/metrics: HTTP {status}")
        return data.decode()

    def metrics(self):
        return parse_metrics(self.metrics_text())

    def memory(self):
        """VmRSS and VmHWM in bytes."""
        out = {}
        with open(f"/proc/{self.process.pid}/status") as f:
            for line in f:
                name, _, rest = line.partition(":")
                if name in ("VmRSS", "VmHWM"):
                    out[name] = int(rest.split()[0]) * 1024
        return out


def sse_events(response):
    """(time, event) of an open SSE reply.  Strict: every event is one `data: ` line and a blank one."""
    while True:
        line = response.readline()
        if not line:
            raise AssertionError("the stream ended without [DONE]")
        now = time.monotonic()
        if line.startswith(b":"):  # a comment, sent to keep proxies awake
            line = response.readline()
            if line != b"\n":
                raise AssertionError(f"no blank line after a comment: {line!r}")
            continue
        if not line.startswith(b"data: ") or not line.endswith(b"\n"):
            raise AssertionError(f"not an SSE data line: {line!r}")
        blank = response.readline()
        if blank != b"\n":
            raise AssertionError(f"no blank line after an event: {blank!r}")
        text = line[6:-1].decode()
        if text == "[DONE]":
            yield now, text
            return
        yield now, json.loads(text)


def parse_metrics(text):
    """{(name, ((label, value), ..sorted)): float} of a Prometheus text page (no escapes beyond \\" \\\\ \\n)."""
    out = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        head, _, value = line.rpartition(" ")
        name, brace, rest = head.partition("{")
        labels = []
        i = 0
        while brace and rest[i] != "}":
            key, _, tail = rest[i:].partition('="')
            i += len(key) + 2
            text_value = ""
            while rest[i] != '"':
                if rest[i] == "\\":
                    i += 1
                    text_value += {"n": "\n"}.get(rest[i], rest[i])
                else:
                    text_value += rest[i]
                i += 1
            i += 1
            labels.append((key.lstrip(","), text_value))
        out[(name, tuple(sorted(labels)))] = float(value)
    return out


def total(metrics, name, **labels):
    """Sum of a metric's samples that carry these labels; KeyError when there is no such metric."""
    found = [v for (n, ls), v in metrics.items() if n == name and labels.items() <= dict(ls).items()]
    if not found:
        raise KeyError(f"{name}{labels or ''} is not in /metrics")
    return sum(found)
