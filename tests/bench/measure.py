# SPDX-License-Identifier: Apache-2.0
"""What the benchmark measures with: samples on file, turns on the machine, both servers, streams with times.

A step is one short run of one engine.  It was disturbed by at most the lesser of two shares of the processors' time:
what was used, but not by us (/proc/stat less our own processes), and what our threads spent ready to run and waiting
(the kernel's run delay).  A step that was disturbed is repeated, and of the tries the least disturbed one is kept,
with that share written beside each of its samples as `others`.
"""

import contextlib
import csv
import fcntl
import os
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
import pressd  # noqa: E402

FIELDS = ("run", "round", "model", "threads", "engine", "setting", "test", "n", "press", "ratio", "what", "unit",
          "value", "others")


class Samples:
    """Rows appended to a CSV file, complete after every step: a run that is cut off loses one step."""

    def __init__(self, path, run):
        self.path, self.run = path, run
        if not os.path.exists(path):
            with open(path, "w", newline="") as f:
                csv.writer(f, lineterminator="\n").writerow(FIELDS)

    def add(self, rows):
        with open(self.path, "a", newline="") as f:
            w = csv.writer(f, lineterminator="\n")
            for row in rows:
                value = row["value"]
                w.writerow([f"{value:.6g}" if k == "value" else row.get(k, "") for k in FIELDS])


class Turn:
    """The machine to itself, in slices: an exclusive lock on a file, given up between steps once it was held for
    `slice_s`, so that others who share the machine and the lock get their turn.  No file: no waiting."""

    def __init__(self, path, slice_s):
        self.path, self.slice_s, self.file, self.since = path, slice_s, None, 0.0

    def take(self):
        if self.path and not self.file:
            self.file = open(self.path, "a")
            fcntl.flock(self.file, fcntl.LOCK_EX)
            self.since = time.monotonic()

    def give(self):
        if self.file:
            self.file.close()
            self.file = None

    def breathe(self):
        if self.file and time.monotonic() - self.since > self.slice_s:
            self.give()
            time.sleep(0.5)


def busy_seconds():
    """CPU seconds all processors have worked or were kept from us by the hypervisor."""
    with open("/proc/stat") as f:
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, f.readline().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


class Waiting(threading.Thread):
    """Adds up the run delay of every thread of our child processes, looking in every 50 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.done, self.delay, self.ours = threading.Event(), {}, {}

    def run(self):
        while not self.done.wait(0.05):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                if pid not in self.ours:
                    self.ours[pid] = self.is_child(pid)
                if self.ours[pid]:
                    self.child(pid)

    @staticmethod
    def is_child(pid):
        with contextlib.suppress(OSError):  # processes come and go
            with open(f"/proc/{pid}/stat") as f:
                return int(f.read().rsplit(")", 1)[1].split()[1]) == os.getpid()
        return False

    def child(self, pid):
        with contextlib.suppress(OSError):
            for tid in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{tid}/schedstat") as f:
                    self.delay[pid, tid] = int(f.read().split()[1]) * 1e-9

    def stop(self):
        self.done.set()
        self.join()
        return sum(self.delay.values())


class Step:
    """Runs steps and keeps their samples."""

    def __init__(self, samples, turn, quiet, tries, log=sys.stderr):
        self.samples, self.turn, self.quiet, self.tries, self.log = samples, turn, quiet, tries, log
        self.cpus = len(os.sched_getaffinity(0))

    def run(self, name, head, work):
        """`work()` gives a list of dicts; `head` are the fields they share.  Its processes end before it does."""
        best = None
        for attempt in range(self.tries):
            self.turn.breathe()
            self.turn.take()
            waiting = Waiting()
            waiting.start()
            t0, all0, own0 = time.monotonic(), busy_seconds(), own_seconds()
            rows = work()
            wall = time.monotonic() - t0
            used = max(0.0, busy_seconds() - all0 - own_seconds() + own0) / wall / self.cpus
            waited = waiting.stop() / wall / self.cpus
            others = min(used, waited)
            print(f"{name}: {wall:.1f} s, others used {used:.1%}, we waited {waited:.1%}", file=self.log, flush=True)
            if best is None or others < best[0]:
                best = (others, rows)
            if others <= self.quiet:
                break
        self.samples.add([{**head, **row, "run": self.samples.run, "others": f"{best[0]:.3f}"} for row in best[1]])
        return best[1]


class LlamaServer(pressd.Server):
    """llama-server with the face of pressd.Server."""

    ready_path = "/health"

    def command(self):
        return [os.path.join(os.environ["PEER_BIN"], "llama-server"), "--model", self.model, "--host", "127.0.0.1",
                "--port", str(self.port), "--cache-ram", "0", "--no-webui", *self.args]


def first_token(server, body, timeout=120):
    """Start `server` and ask until it answers: seconds from its start to the reply that holds a token."""
    t0 = time.monotonic()
    server.launch()
    try:
        while time.monotonic() - t0 < timeout:
            with contextlib.suppress(OSError):
                if server.post("/v1/completions", body)[0] == 200:
                    return time.monotonic() - t0
            if server.process.poll() is not None:
                raise pressd.ServerDied(server.log_tail())
            time.sleep(0.002)
        raise pressd.ServerDied(f"no token after {timeout} s\n{server.log_tail()}")
    finally:
        server.stop()


class Streams:
    """Requests that stream side by side; `times[i]` holds the arrival of each text of stream i."""

    def __init__(self, server, bodies):
        self.times = [[] for _ in bodies]
        self.failed = []
        self.halt = threading.Event()
        self.threads = [threading.Thread(target=self._read, args=(server, b, t), daemon=True)
                        for b, t in zip(bodies, self.times)]
        for t in self.threads:
            t.start()

    def _read(self, server, body, times):
        try:
            for t, event in server.stream("/v1/completions", body, timeout=1800):
                if event != "[DONE]" and event.get("choices"):
                    times.append(t)
                if self.halt.is_set():
                    return
        except Exception as e:  # noqa: BLE001 - told by wait(), which runs in the thread that measures
            if not self.halt.is_set():
                self.failed.append(e)

    def wait(self, until, timeout=600):
        """Until until() is true."""
        end = time.monotonic() + timeout
        while not until():
            if self.failed:
                raise self.failed[0]
            if time.monotonic() > end:
                raise TimeoutError("the streams made no progress")
            if not any(t.is_alive() for t in self.threads):
                raise RuntimeError("the streams ended before the measurement did")
            time.sleep(0.02)

    def started(self):
        return all(self.times)

    def after(self, t, n):
        """True if every stream has n arrivals after t."""
        return all(len(x) >= n and x[-n] > t for x in self.times)

    def gaps(self, t0, t1):
        """Seconds between two arrivals of a stream, both within [t0, t1]."""
        out = []
        for x in self.times:
            inside = [t for t in x if t0 <= t <= t1]
            out += [b - a for a, b in zip(inside, inside[1:])]
        return out

    def stop(self):
        self.halt.set()
        for t in self.threads:
            t.join(60)


def percentile(values, p):
    """Linear between the two nearest ranks."""
    x = sorted(values)
    k = (len(x) - 1) * p / 100
    low = int(k)
    return x[low] + (x[min(low + 1, len(x) - 1)] - x[low]) * (k - low)


def run_json(command):
    """A program's standard output lines that are JSON objects; what it said is shown if it fails."""
    import json
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
