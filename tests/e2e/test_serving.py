# SPDX-License-Identifier: Apache-2.0
"""Many requests at once: determinism, fairness, leaving clients, full queues, an orderly end, true metrics."""

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse
import urllib.request

import common
import pressd
import text

C, CHAT = "/v1/completions", "/v1/chat/completions"


def mixed(s, n):
    """n requests of different lengths, half of them pressed by different presses."""
    presses = ("knorm@0.5", "snapkv@0.3", "adakv(expected_attention)@0.5", "streaming_llm@0.6")
    out = []
    for i in range(n):
        body = {"prompt": common.ids(s, 20 + 23 * i, start_at=50 * i), "max_tokens": 16, "temperature": 0,
                "ignore_eos": True, "logprobs": 2}
        if i % 2:
            body["compression"] = presses[i // 2 % len(presses)]
        out.append(body)
    return out


class Determinism(unittest.TestCase):
    N = 16

    def answers(self, s, bodies, at_once):
        ask = lambda b: s.ask(C, b)["choices"]
        return common.parallel([lambda b=b: ask(b) for b in bodies]) if at_once else [ask(b) for b in bodies]

    def test_batch_mates_and_threads_change_nothing(self):
        with common.start("smollm2", "--threads", "1") as one:
            bodies = mixed(one, self.N)
            solo = self.answers(one, bodies, False)
            self.assertEqual(self.answers(one, bodies, True), solo, "16 at once against each alone")
            self.assertTrue(common.idle(one))
        self.assertGreater(len({json.dumps(x) for x in solo}), self.N // 2)
        with common.start("smollm2", "--threads", "2") as two:
            self.assertEqual(self.answers(two, bodies, True), solo, "two threads, 16 at once")


class Leaving(unittest.TestCase):
    def setUp(self):
        self.s = common.server()

    def leave(self, body, events):
        """Send a request, read some events, go away; the time until every page is free again."""
        with socket.create_connection(("127.0.0.1", self.s.port), 60) as c:
            data = json.dumps(body).encode()
            c.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                      b"Content-Length: %d\r\n\r\n" % len(data) + data)
            got = b""
            while got.count(b"data: ") < events:
                got += c.recv(4096)
            if events == 0:
                self.assertTrue(common.wait_until(lambda: not common.idle(self.s), 5), "it never ran")
        t0 = time.monotonic()
        self.assertTrue(common.wait_until(lambda: common.idle(self.s), 5), "pages are still held")
        return time.monotonic() - t0

    def test_during_a_stream(self):
        took = self.leave({"prompt": common.ids(self.s, 200), "max_tokens": 4000, "ignore_eos": True, "stream": True}, 5)
        self.assertLess(took, 1.0 * pressd.PATIENCE)

    def test_during_prefill(self):
        took = self.leave({"prompt": common.ids(self.s, 4000), "max_tokens": 4, "stream": True}, 0)
        self.assertLess(took, 1.0 * pressd.PATIENCE)

    def test_without_stream(self):
        took = self.leave({"prompt": common.ids(self.s, 100), "max_tokens": 4000, "ignore_eos": True}, 0)
        self.assertLess(took, 1.0 * pressd.PATIENCE)


class Fairness(unittest.TestCase):
    def test_a_long_prompt_does_not_stall_a_stream(self):
        s = common.server()
        long = common.ids(s, 2048)
        body = {"prompt": common.ids(s, 64), "max_tokens": 8000, "temperature": 0, "ignore_eos": True}
        times, window, stop = [], [], threading.Event()

        def reader():
            for t, _ in s.stream(C, body):
                times.append(t)
                if stop.is_set():
                    return

        thread = threading.Thread(target=reader)
        thread.start()
        try:
            self.assertTrue(common.wait_until(lambda: len(times) > 10, 20))
            window.append(time.monotonic())
            time.sleep(1)  # the stream alone: what this machine gives at this moment
            window.append(time.monotonic())
            common.complete(s, long, 1)
            window.append(time.monotonic())
        finally:
            stop.set()
            thread.join(30 * pressd.PATIENCE)
        alone, gaps = self.gaps(times, *window[:2]), self.gaps(times, *window[1:])
        self.assertGreater(len(gaps), 5, "the stream stood still while the long prompt was read")
        p90 = lambda x: x[len(x) * 9 // 10]
        took = window[2] - window[1]
        common.say(f"2048-token prompt in {took:.2f} s beside a stream; gaps between its tokens: median "
                   f"{statistics.median(gaps) * 1e3:.0f} ms, p90 {p90(gaps) * 1e3:.0f} ms, max {gaps[-1] * 1e3:.0f} ms; "
                   f"alone p90 {p90(alone) * 1e3:.0f} ms")
        # A work unit of prefill is the price of a step.  On a machine others use every gap grows alike, so
        # the bound grows with what the stream had alone; one that waits for the whole prompt fails anywhere.
        self.assertLess(p90(gaps), 0.120 * pressd.PATIENCE + 4 * p90(alone))
        self.assertLess(gaps[-1], max(0.500 * pressd.PATIENCE, took / 4))

    @staticmethod
    def gaps(times, begin, end):
        inside = [t for t in times if begin <= t <= end]
        return sorted(b - a for a, b in zip(inside, inside[1:])) or [end - begin]

    def test_metrics_do_not_wait_for_the_engine(self):
        s = common.server()
        stream = s.stream(C, {"prompt": common.ids(s, 4000), "max_tokens": 4})
        thread = threading.Thread(target=lambda: list(stream))
        thread.start()
        took = []
        while thread.is_alive() and len(took) < 50:
            t0 = time.monotonic()
            s.metrics_text()
            took.append(time.monotonic() - t0)
            time.sleep(0.02)
        thread.join(60 * pressd.PATIENCE)
        common.say(f"{len(took)} scrapes while a 4000-token prompt was read: median {statistics.median(took) * 1e3:.1f} ms, "
                   f"max {max(took) * 1e3:.1f} ms")
        self.assertLess(statistics.median(took), 0.1 * pressd.PATIENCE)


class Overload(unittest.TestCase):
    def test_queue_full(self):
        with common.start("smollm2", "--parallel", "1", "--queue", "1") as s:
            body = {"prompt": "Count:", "max_tokens": 4000, "ignore_eos": True}
            running = s.stream(C, body)
            next(running)
            waiting = threading.Thread(target=lambda: waited.append(s.post(C, {"prompt": "Hi", "max_tokens": 2})))
            waited = []
            waiting.start()
            queued = lambda: pressd.total(s.metrics(), "pressd_requests_waiting") == 1
            self.assertTrue(common.wait_until(queued, 5))
            status, headers, reply = s.post(C, {"prompt": "Hi", "max_tokens": 2})
            self.assertEqual((status, reply["error"]["type"], reply["error"]["code"]), (429, "rate_limit_error", "queue_full"))
            self.assertGreaterEqual(int(headers["retry-after"]), 1)
            t0 = time.monotonic()
            self.assertEqual(s.get("/health")[0], 200)
            self.assertLess(time.monotonic() - t0, 0.5, "health answers while the engine computes")
            running.close()  # leaves: the one that waits gets its turn
            waiting.join(30)
            self.assertEqual(waited[0][0], 200)
            self.assertEqual(pressd.total(s.metrics(), "pressd_requests_rejected_total", reason="queue_full"), 1)

    def test_sigterm_finishes_what_runs(self):
        s = common.start("smollm2")
        self.addCleanup(s.stop)
        stream = s.stream(C, {"prompt": "Once", "max_tokens": 150, "temperature": 0, "ignore_eos": True})
        events = [next(stream)[1]]
        s.process.send_signal(signal.SIGTERM)

        def refused():
            try:
                return s.get("/readyz")[0] == 503 and s.post(C, {"prompt": "Hi", "max_tokens": 2})[0] == 503
            except OSError:
                return True  # it may stop listening instead

        self.assertTrue(common.wait_until(refused, 3), "a draining server still takes work")
        events += [e for _, e in stream]
        self.assertEqual(events[-1], "[DONE]")
        self.assertEqual(sum(e["choices"][0]["finish_reason"] is None for e in events[:-1] if e["choices"]), 150)
        self.assertEqual(s.stop(), 0)


class Shortage(unittest.TestCase):
    """A pool that one long answer fills: what it gives back when another request waits."""

    PROMPT, LONG = 600, 400

    def first_token_of_the_second(self, compression):
        """(whether the long answer still ran when the short one ended, the long one's kv_cache)"""
        shape = common.SHAPES["smollm2"]
        staging = (self.PROMPT + 1) * shape.heads_kv * shape.head_dim * 2 * 4
        pool = shape.paged(self.PROMPT + self.LONG + common.PAGE) + staging
        with common.start("smollm2", "--kv-cache-bytes", str(pool), "--ctx-size", "2048") as s:
            long = {"prompt": common.ids(s, self.PROMPT), "max_tokens": self.LONG, "temperature": 0, "ignore_eos": True, **compression}
            events, ended = [], threading.Event()

            def read():
                events.extend(e for _, e in s.stream(C, {**long, "stream_options": {"include_usage": True}}))
                ended.set()

            reader = threading.Thread(target=read)
            reader.start()
            running = lambda: pressd.total(s.metrics(), "pressd_requests_running") == 1
            self.assertTrue(common.wait_until(running, 30))
            reply = common.complete(s, common.ids(s, 100, 700), 8)
            early = not ended.is_set()
            reader.join(120)
            self.assertEqual(reply["usage"]["completion_tokens"], 8)
            self.assertTrue(common.wait_until(lambda: common.idle(s), 5), "pages are still held")
            report = [e["kv_cache"] for e in events if isinstance(e, dict) and e.get("kv_cache")]
            self.assertTrue(report, "nothing was said of the cache")
            return early, report[-1]

    def test_a_request_that_agreed_makes_room(self):
        early, report = self.first_token_of_the_second({})
        self.assertFalse(early, "the pool holds both: nothing is tested")
        self.assertEqual(report["tokens_kept"], report["tokens_seen"])
        early, report = self.first_token_of_the_second({"compression": {"press": "kv_compress:when=shortage", "ratio": 0.8}})
        self.assertTrue(early, "the second waited for the first one's end")
        self.assertLess(report["tokens_kept"], report["tokens_seen"] - self.PROMPT // 2)
        self.assertLess(report["bytes"], common.SHAPES["smollm2"].dense(self.PROMPT + self.LONG) * 3 // 4)
        common.say(f"a long answer gave back memory for another: {report['bytes']} bytes at its end, "
                   f"{report['bytes_dense']} dense")


class Metrics(unittest.TestCase):
    """A server of its own, since the counters are compared from zero."""

    @classmethod
    def setUpClass(cls):
        cls.s = common.start("smollm2")
        cls.addClassCleanup(cls.s.stop)
        cls.told = {"prompt": 0, "generated": 0, "requests": 0, "pressed": 0}
        chat = [{"role": "user", "content": "Name three rivers."}]
        for i, c in enumerate((None, "knorm@0.5", "knorm@0.25", "adakv(snapkv)@0.5", None)):
            body = {"max_tokens": 5 + i, "temperature": 0, "compression": c}
            cls.count(cls.s.ask(C, {**body, "prompt": text.prose(10, i)})["usage"], c)
            cls.count(cls.s.ask(CHAT, {**body, "messages": chat})["usage"], c)
            events = [e for _, e in cls.s.stream(C, {**body, "prompt": "A b c d", "stream_options": {"include_usage": True}})]
            cls.count(events[-2]["usage"], c)
        cls.s.post(C, {"prompt": 5})

    @classmethod
    def count(cls, usage, c):
        cls.told["prompt"] += usage["prompt_tokens"]
        cls.told["generated"] += usage["completion_tokens"]
        cls.told["requests"] += 1
        cls.told["pressed"] += c is not None

    def test_counters_are_what_clients_were_told(self):
        m = self.s.metrics()
        total = lambda name, **labels: pressd.total(m, name, **labels)
        for name, want in (("prompt", total("pressd_prompt_tokens_total")), ("prompt", total("vllm:prompt_tokens_total")),
                           ("generated", total("pressd_generated_tokens_total")),
                           ("generated", total("vllm:generation_tokens_total")),
                           ("requests", total("pressd_requests_finished_total")),
                           ("requests", total("pressd_time_to_first_token_seconds_count")),
                           ("requests", total("pressd_request_generated_tokens_count"))):
            self.assertEqual(self.told[name], want, name)
        self.assertEqual(total("pressd_request_prompt_tokens_sum"), self.told["prompt"])
        self.assertEqual(total("pressd_press_requests_total", press="knorm"), 6)
        self.assertEqual(total("pressd_press_requests_total", press="adakv"), 3)
        seen, kept = (total(f"pressd_press_tokens_{x}_total", press="knorm") for x in ("seen", "kept"))
        self.assertTrue(0.4 < kept / seen < 0.9, (seen, kept))
        self.assertEqual(total("pressd_http_requests_total", route=C, code="400"), 1)
        self.assertEqual(total("pressd_http_requests_total", route=C, code="200"), 10)
        self.assertEqual(total("vllm:num_requests_running"), 0)
        self.assertTrue(common.idle(self.s))
        for name in ("vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:cache_config_info", "vllm:lora_requests_info",
                     "pressd_build_info", "process_resident_memory_bytes", "process_cpu_seconds_total"):
            self.assertIn(name, {n for n, _ in m})

    @unittest.skipUnless(shutil.which("promtool"), "no promtool")
    def test_promtool(self):
        """No complaint but the one about the colon in vLLM's names, which gateways ask for as they are."""
        r = subprocess.run(["promtool", "check", "metrics"], input=self.s.metrics_text(), text=True, capture_output=True)
        self.assertIn(r.returncode, (0, 3), r.stdout + r.stderr)  # 3: findings of the linter
        colon = lambda line: line.startswith("vllm:") and line.endswith("metric names should not contain ':'")
        self.assertEqual([x for x in (r.stdout + r.stderr).splitlines() if x and not colon(x)], [])

    @unittest.skipUnless(shutil.which("prometheus"), "no prometheus")
    def test_a_real_prometheus_scrapes_it(self):
        port = pressd.free_port()
        with tempfile.TemporaryDirectory() as d:
            with open(os.path.join(d, "prometheus.yml"), "w") as f:
                f.write("global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: pressd\n  static_configs:\n"
                        f"  - targets: ['127.0.0.1:{self.s.port}']\n")
            with open(os.path.join(d, "log"), "w") as log:
                p = subprocess.Popen(["prometheus", f"--config.file={d}/prometheus.yml", f"--storage.tsdb.path={d}/tsdb",
                                      f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
            try:
                query = lambda q: self.query(port, q)
                self.assertTrue(common.wait_until(lambda: query('up{job="pressd"}') == 1, 20, 0.25), self.tail(d))
                self.assertEqual(query("sum(pressd_prompt_tokens_total)"), self.told["prompt"])
                self.assertEqual(query("sum(vllm:generation_tokens_total)"), self.told["generated"])
                self.assertEqual(query("sum(pressd_request_seconds_count)"), self.told["requests"])
            finally:
                p.terminate()
                p.wait(30)

    @staticmethod
    def tail(folder):
        with open(os.path.join(folder, "log")) as f:
            return f.read()[-2000:]

    @staticmethod
    def query(port, q):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(q)}", timeout=5) as r:
                found = json.load(r)["data"]["result"]
        except OSError:
            return None
        return float(found[0]["value"][1]) if found else None


if __name__ == "__main__":
    unittest.main()
