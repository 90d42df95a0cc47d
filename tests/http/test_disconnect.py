# SPDX-License-Identifier: Apache-2.0
"""Clients that leave: the job is cancelled and the descriptor closed within a
second, in every state, however they leave."""
import json
import random
import socket
import struct
import threading
import time

from harness import ServerTest, post_bytes, read_all, readable, statuses, until


def leave(s, how):
    if how == "rst":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half":
        s.shutdown(socket.SHUT_WR)
    else:
        s.close()


class Gone(ServerTest):
    args = ("--parallel", "2", "--idle-timeout", "30")

    STATES = {
        "prefill": {"prompt": "@@prefill=20000", "max_tokens": 5},
        "prefill, stream": {"prompt": "@@prefill=20000", "max_tokens": 5, "stream": True},
        "decode": {"prompt": "@@step=50", "max_tokens": 4000},
        "decode, stream": {"prompt": "@@step=50", "max_tokens": 4000, "stream": True},
        "fast stream": {"prompt": "abc", "max_tokens": 7000, "stream": True},
    }

    def idle(self):
        return self.s.metric("pressd_requests_running") == 0 and self.s.metric("pressd_requests_waiting") == 0

    def check(self, body, how, path="/v1/completions"):
        s = self.s.connect()
        s.sendall(post_bytes(path, body))
        if body.get("stream") and "prefill" not in body["prompt"]:
            self.assertTrue(readable(s, 5))
        else:
            until(lambda: self.s.metric("pressd_requests_running") == 1, 2, "running")
        leave(s, how)
        until(self.idle, 1, "job cancelled")
        until(lambda: self.s.metric("pressd_http_requests_active") == 1, 1, "request ended")  # this one
        if how == "half":
            s.settimeout(2)
            read_all(s)
            s.close()

    def test_every_state(self):
        for state, body in self.STATES.items():
            for how in ("fin", "rst", "half"):
                with self.subTest(state=state, how=how):
                    self.check(body, how)

    def test_explain(self):
        for how in ("fin", "rst", "half"):
            self.check({"prompt": "@@prefill=20000"}, how, "/v1/compression/explain")

    def test_queued(self):
        holders = [self.s.connect() for _ in range(2)]
        for h in holders:
            h.sendall(post_bytes("/v1/completions", self.STATES["prefill"]))
        until(lambda: self.s.metric("pressd_requests_running") == 2, 2, "both running")
        for how in ("fin", "rst", "half"):
            s = self.s.connect()
            s.sendall(post_bytes("/v1/completions", {"prompt": "x"}))
            until(lambda: self.s.metric("pressd_requests_waiting") == 1, 2, "waiting")
            leave(s, how)
            until(lambda: self.s.metric("pressd_requests_waiting") == 0, 1, "taken from the queue")
            s.close()
        for h in holders:
            h.close()
        until(self.idle, 1, "idle")

    def test_uploading(self):
        before = self.s.fds()
        for how in ("fin", "rst", "half"):
            for cut in (10, 60, 150):
                s = self.s.connect()
                s.sendall(post_bytes("/v1/completions", {"prompt": "x" * 2000})[:cut])
                leave(s, how)
                s.close()
        until(lambda: self.s.fds() <= before, 2, "descriptors back")

    def test_descriptors_return(self):
        idle = [self.s.connect() for _ in range(20)]  # older connections beside: a zombie would hide behind them
        for c in idle:
            c.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertTrue(readable(c, 2))
        before = self.s.fds()
        for i in range(30):
            s = self.s.connect()
            s.sendall(post_bytes("/v1/completions", self.STATES["decode, stream"]))
            self.assertTrue(readable(s, 5)) if i % 2 else time.sleep(0.01)
            leave(s, ("fin", "rst")[i % 2])
        until(lambda: self.s.fds() <= before and self.idle(), 2, "descriptors back")
        for c in idle:
            c.close()


class Abuse(ServerTest):
    args = ("--parallel", "64", "--max-connections-per-ip", "0", "--queue", "1000")

    def test_random(self):
        """Many clients, a third of them leaving at a random moment; the others get right answers."""
        wrong, good = [], []

        def client(seed):
            r = random.Random(seed)
            for _ in range(12):
                n = r.randint(1, 40)
                stream = r.random() < 0.6
                body = {"prompt": "abcdefgh" + "@@step=1" * r.randint(0, 1), "max_tokens": n, "stream": stream}
                refused, many = r.random() < 0.2, r.choice((1, 1, 2, 6))
                if many > 1 and not refused:
                    body.update(prompt=[body["prompt"]] * 2, n=many // 2)
                if refused:
                    body["prompt"] += "z" * 90000
                    body["n"] = 0  # a large body that is refused
                try:
                    s = self.s.connect(20)
                    data = post_bytes("/v1/completions", body, "Connection: close\r\n")
                    if r.random() < 0.33:
                        s.sendall(data[:r.randint(1, len(data))])
                        s.settimeout(r.random() * 0.05 + 0.001)
                        try:
                            s.recv(r.randint(1, 500))
                        except OSError:
                            pass
                        leave(s, r.choice(("fin", "rst", "half")))
                        s.close()
                        continue
                    s.sendall(data)
                    out = read_all(s, 20)
                    s.close()
                    code = statuses(out)
                    if refused:
                        ok = code == [400]
                    elif stream:
                        ok = code == [200] and out.count(b'"text":') == (n + 1) * many and b"[DONE]" in out
                    else:
                        ok = code == [200] and json.loads(out.split(b"\r\n\r\n", 1)[1])["usage"]["completion_tokens"] == n * many
                    (good if ok else wrong).append((body["max_tokens"], out[:300]))
                except OSError as e:
                    wrong.append((body, repr(e)))

        threads = [threading.Thread(target=client, args=(i,)) for i in range(40)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(wrong, [])
        self.assertGreater(len(good), 100)
        until(lambda: self.s.metric("pressd_requests_running") == 0 and self.s.metric("pressd_requests_waiting") == 0, 2, "idle")
        until(lambda: self.s.metric("pressd_http_connections") == 1, 2, "connections closed")
        pages = self.s.metric("pressd_kv_cache_pages", '{state="sequences"}')
        self.assertEqual(pages, 0)
