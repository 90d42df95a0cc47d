# SPDX-License-Identifier: Apache-2.0
"""Starting, draining, stopping."""
import os
import signal
import subprocess
import tempfile
import threading
import time
import unittest

import harness
from harness import Server, events, post_bytes, read_all, readable, statuses, until


class Life(unittest.TestCase):
    def test_loading(self):
        s = Server(env={"FAKE_ENGINE_LOAD_MS": "1500"}, wait=False)
        self.assertEqual(s.get("/livez").status, 200)
        for path in ("/readyz", "/health", "/v1/models"):
            r = s.get(path)
            self.assertEqual((r.status, r.error["type"], r.headers["Retry-After"]), (503, "unavailable_error", "2"))
        self.assertEqual(s.complete().status, 503)
        self.assertEqual(s.get("/metrics").status, 200)
        s.wait_for("ready: ", lambda m: None)
        self.assertEqual(s.get("/readyz").status, 200)
        self.assertEqual(s.complete().status, 200)
        self.assertEqual(s.stop(), 0)

    def test_stop_while_loading(self):
        s = Server(env={"FAKE_ENGINE_LOAD_MS": "20000"}, wait=False)
        begin = time.monotonic()
        self.assertEqual(s.stop(), 0)
        self.assertLess(time.monotonic() - begin, 2)

    def test_bad_model(self):
        s = Server(model="missing.gguf", wait=False)
        self.assertEqual(s.process.wait(5), 2)
        self.assertIn("no such file", s.text())

    def test_bad_default_compression(self):
        s = Server("--compression", "nope@0.5", wait=False)
        self.assertEqual(s.process.wait(5), 2)
        self.assertIn("nope", s.text())

    def test_port_in_use(self):
        s = Server()
        r = subprocess.run([harness.BINARY, "--model", "x", "--host", "127.0.0.1", "--port", str(s.port)],
                           stderr=subprocess.PIPE, timeout=10)
        self.assertEqual(r.returncode, 2)
        self.assertIn(str(s.port).encode(), r.stderr)
        self.assertEqual(s.stop(), 0)

    def test_no_model(self):
        r = subprocess.run([harness.BINARY], stderr=subprocess.PIPE, timeout=10)
        self.assertEqual(r.returncode, 2)
        self.assertIn(b"--model", r.stderr)

    def test_idle_stops_at_once(self):
        for sig in (signal.SIGTERM, signal.SIGINT):
            s = Server()
            keep = s.connect()
            keep.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            readable(keep, 2)
            begin = time.monotonic()
            self.assertEqual(s.stop(sig), 0)
            self.assertLess(time.monotonic() - begin, 2)
            keep.close()

    def test_drain(self):
        s = Server()
        replies = []
        threads = [threading.Thread(target=lambda k=k: replies.append(s.complete("@@step=20", max_tokens=60, stream=k)))
                   for k in (True, False) for _ in range(4)]
        for t in threads:
            t.start()
        until(lambda: s.metric("pressd_requests_running") == 8, 3, "running")
        s.process.send_signal(signal.SIGTERM)
        until(lambda: s.get("/readyz").status == 503, 1, "not ready")
        self.assertEqual(s.get("/livez").status, 200)
        r = s.complete()
        self.assertEqual((r.status, r.error["type"]), (503, "unavailable_error"))
        self.assertEqual(r.headers["Connection"], "close")
        for t in threads:
            t.join()
        self.assertEqual([r.status for r in replies], [200] * 8)
        self.assertEqual(sum(events(r.body)[-1] == "[DONE]" for r in replies if r.headers["Content-Type"] != "application/json"), 4)
        self.assertEqual(s.stop(), 0)

    def test_drain_deadline(self):
        s = Server("--drain-timeout", "1")
        c = s.connect()
        c.sendall(post_bytes("/v1/completions", {"prompt": "@@prefill=60000"}))
        until(lambda: s.metric("pressd_requests_running") == 1, 2, "running")
        begin = time.monotonic()
        self.assertEqual(s.stop(), 0)
        self.assertLess(time.monotonic() - begin, 4)
        c.close()

    def test_second_signal(self):
        s = Server()
        clients = [s.connect() for _ in range(5)]
        for i, c in enumerate(clients):
            c.sendall(post_bytes("/v1/completions", {"prompt": "@@prefill=60000", "stream": bool(i % 2)}))
        until(lambda: s.metric("pressd_requests_running") == 5, 2, "running")
        s.process.send_signal(signal.SIGTERM)
        until(lambda: s.get("/readyz").status == 503, 1, "draining")
        begin = time.monotonic()
        self.assertEqual(s.stop(), 0)
        self.assertLess(time.monotonic() - begin, 2)
        for c in clients:
            c.close()

    def test_half_sent_request_does_not_hold_the_drain(self):
        s = Server()
        c = s.connect()
        c.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.1)
        begin = time.monotonic()
        self.assertEqual(s.stop(), 0)
        self.assertLess(time.monotonic() - begin, 2)
        c.close()

    def test_hup_changes_nothing(self):
        s = Server()
        s.process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
        self.assertEqual(s.complete().status, 200)
        self.assertEqual(s.stop(), 0)

    def test_unix_socket(self):
        import socket
        path = os.path.join(tempfile.mkdtemp(), "s")
        p = subprocess.Popen([harness.BINARY, "--model", "x", "--host", path], stderr=subprocess.DEVNULL)
        try:
            until(lambda: os.path.exists(path), 5, "socket")
            time.sleep(0.2)
            with socket.socket(socket.AF_UNIX) as c:
                c.connect(path)
                c.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                self.assertEqual(statuses(read_all(c)), [200])
        finally:
            p.send_signal(signal.SIGTERM)
            self.assertEqual(p.wait(10), 0)
        self.assertFalse(os.path.exists(path))
