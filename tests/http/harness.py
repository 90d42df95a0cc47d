# SPDX-License-Identifier: Apache-2.0
"""What the HTTP tests share: a server process, plain requests, raw sockets.

Only the standard library.  Every server listens on a free port of 127.0.0.1 and
is ended by its pid; a server that died, or that logged a sanitizer report,
fails the test that used it.
"""
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
import unittest

BINARY = None  # set by run.py


def sanitized():
    """Is BINARY built with a sanitizer?  Its memory figures then mean little."""
    with open(BINARY, "rb") as f:
        data = f.read()
    return b"__asan_init" in data or b"__tsan_init" in data


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]


class Server:
    def __init__(self, *args, env=None, wait=True, model="fake.gguf"):
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [BINARY, "--model", model, "--host", "127.0.0.1", "--port", "0", *args],
            stderr=self.log, stdout=subprocess.DEVNULL, env={**os.environ, **(env or {})})
        self.port = None
        self.wait_for(r"listening on \S+ port (\d+)", lambda m: setattr(self, "port", int(m[1])))
        if wait:
            self.wait_for(r"ready: ", lambda m: None)

    def text(self):
        self.log.flush()
        return os.pread(self.log.fileno(), 1 << 24, 0).decode("utf-8", "replace")

    def wait_for(self, pattern, found, seconds=30):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            match = re.search(pattern, self.text())
            if match:
                return found(match)
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"no {pattern!r} from the server:\n{self.text()[-3000:]}")

    def stop(self, sig=signal.SIGTERM, seconds=30):
        """Exit code; the log must hold no sanitizer report."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the server did not end:\n" + self.text()[-3000:])
        text = self.text()
        for word in ("Sanitizer", "runtime error:", "Assertion"):
            if word in text:
                raise AssertionError(text[-6000:])
        return code

    # ---- requests ----

    def request(self, method, path, body=None, headers=None, timeout=30):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
                headers = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, body, headers or {})
            r = connection.getresponse()
            return Reply(r.status, r.headers, r.read())
        finally:
            connection.close()

    def get(self, path, **kw):
        return self.request("GET", path, **kw)

    def post(self, path, body, **kw):
        return self.request("POST", path, body, **kw)

    def complete(self, prompt="hello", **fields):
        return self.post("/v1/completions", {"prompt": prompt, "max_tokens": 4, **fields})

    def chat(self, content="hello", **fields):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}
        return self.post("/v1/chat/completions", body)

    def connect(self, timeout=10):
        s = socket.create_connection(("127.0.0.1", self.port), timeout)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def raw(self, data, timeout=5, half_close=False):
        """Everything the server sends until it closes, or until it is quiet for `timeout`."""
        with self.connect() as s:
            s.sendall(data)
            if half_close:
                s.shutdown(socket.SHUT_WR)
            return read_all(s, timeout)

    def metric(self, name, labels=""):
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith(name + labels + " ") or (not labels and line.startswith(name + "{")):
                return float(line.rsplit(" ", 1)[1])
        return None

    def fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def rss(self):
        with open(f"/proc/{self.process.pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def read_all(s, timeout=5):
    out = b""
    s.settimeout(timeout)
    try:
        while True:
            block = s.recv(65536)
            if not block:
                break
            out += block
    except (TimeoutError, socket.timeout):
        pass
    except ConnectionResetError:
        pass
    return out


def post_bytes(path, body, headers="", version="1.1"):
    if isinstance(body, (dict, list)):
        body = json.dumps(body).encode()
    return (f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def statuses(data):
    """Status codes of the replies in a byte stream."""
    return [int(x) for x in re.findall(rb"(?:^|\n)HTTP/1\.[01] (\d{3})", data)]


def events(data):
    """Payloads of the data: lines of an SSE body, [DONE] included."""
    out = []
    for block in data.decode().split("\n\n"):
        for line in block.split("\n"):
            if line.startswith("data: "):
                out.append(line[6:])
            elif line and not line.startswith(":"):
                raise AssertionError(f"not an SSE line: {line!r}")
    return out


def until(check, seconds, what):
    """Seconds it took for check() to be true; fails after `seconds`."""
    begin = time.monotonic()
    while not check():
        if time.monotonic() - begin > seconds:
            raise AssertionError(f"after {seconds} s not yet: {what}")
        time.sleep(0.01)
    return time.monotonic() - begin


def readable(s, seconds):
    return bool(select.select([s], [], [], seconds)[0])


class ServerTest(unittest.TestCase):
    """One server per class; `args` and `env` are its settings."""
    args = ()
    env = None

    @classmethod
    def setUpClass(cls):
        cls.s = Server(*cls.args, env=cls.env)

    @classmethod
    def tearDownClass(cls):
        code = cls.s.stop()
        if code != 0:
            raise AssertionError(f"exit code {code}\n{cls.s.text()[-3000:]}")

    def check_error(self, reply, status, type_=None, param=None, word=None):
        self.assertEqual(reply.status, status, reply.body)
        self.assertEqual(reply.headers["Content-Type"], "application/json")
        e = reply.error
        more = {"n_prompt_tokens", "n_ctx"} if e["code"] == "context_length_exceeded" else set()
        self.assertEqual(set(e), {"message", "type", "param", "code"} | more)
        if type_:
            self.assertEqual(e["type"], type_)
        if param:
            self.assertEqual(e["param"], param)
        if word:
            self.assertIn(word, e["message"])
        return e
