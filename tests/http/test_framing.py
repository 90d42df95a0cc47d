# SPDX-License-Identifier: Apache-2.0
"""Raw HTTP: framing a proxy could read differently, odd but legal clients."""
import http.client
import time

from harness import ServerTest, post_bytes, read_all, statuses

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
BODY = b'{"prompt":"abc","max_tokens":2}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class Refused(ServerTest):
    """One answer, 400, and the connection ends: what follows is never read as a request."""
    args = ("--idle-timeout", "2")

    def refused(self, data, status=400):
        begin = time.monotonic()
        out = self.s.raw(data + GET + b"\r\n", timeout=8)
        codes = statuses(out)
        self.assertLess(time.monotonic() - begin, 7, "the connection stayed open")
        if status is None:  # refused by libmicrohttpd itself, which may write its header twice
            self.assertEqual(set(codes) - {400, 413, 431}, set(), out)
            self.assertLessEqual(len(codes), 2, out)
        else:
            self.assertEqual(codes, [status], out)
        return out

    def test_two_lengths(self):
        self.refused(POST + b"Content-Length: 31\r\nContent-Length: 30\r\n\r\n" + BODY)
        self.refused(POST + b"Content-Length: 31\r\nContent-Length: 31\r\n\r\n" + BODY)

    def test_length_and_encoding(self):
        self.refused(POST + b"Content-Length: 31\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        self.refused(POST + b"Transfer-Encoding: chunked\r\nContent-Length: 31\r\n\r\n0\r\n\r\n")

    def test_encodings(self):
        for te in (b"gzip, chunked", b"chunked, chunked", b"identity", b"xchunked", b"chunked\r\nTransfer-Encoding: x"):
            self.refused(POST + b"Transfer-Encoding: " + te + b"\r\n\r\n0\r\n\r\n")

    def test_lengths(self):
        for value in (b"+31", b"31a", b"0x1f", b"31, 31", b"-5", b"99999999999999999999"):
            self.refused(POST + b"Content-Length: " + value + b"\r\n\r\n" + BODY, status=None)

    def test_hosts(self):
        self.refused(b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        self.refused(b"GET /health HTTP/1.1\r\nHost: a?x\r\n\r\n")
        self.refused(b"GET /health HTTP/1.1\r\nHost: a/b\r\n\r\n")
        self.refused(b"GET /health HTTP/1.1\r\n\r\n", status=None)

    def test_control_characters(self):
        self.refused(b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: a\rb\r\n\r\n")
        self.refused(b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: a\x01b\r\n\r\n")

    def test_chunked_1_0(self):
        self.refused(b"POST /v1/completions HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")

    def test_many_headers(self):
        self.refused(GET + b"".join(b"X-%d: y\r\n" % i for i in range(70)) + b"\r\n")
        self.refused(GET + b"X-Big: " + b"y" * 17000 + b"\r\n\r\n")
        self.refused(GET + b"X-Big: " + b"y" * 40000 + b"\r\n\r\n", status=None)

    def test_long_target(self):
        out = self.s.raw(b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        self.assertEqual(statuses(out), [413])

    def test_garbage(self):
        for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 100 + b"\r\n\r\n", b"GET\r\n\r\n",
                     b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n", b"\r\n" * 50, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            self.s.raw(data, timeout=0.5)
        self.assertEqual(self.s.get("/health").status, 200)


class Legal(ServerTest):
    args = ("--idle-timeout", "5")

    def test_pipelining(self):
        n = 201
        with self.s.connect() as s:
            s.sendall((GET + b"\r\n") * (n - 1) + GET + b"Connection: close\r\n\r\n")
            self.assertEqual(statuses(read_all(s)), [200] * n)

    def test_pipelined_behind_a_stream(self):
        body = b'{"prompt":"abc","max_tokens":5,"stream":true}'
        out = self.s.raw(post_bytes("/v1/completions", body) + GET + b"Connection: close\r\n\r\n")
        self.assertEqual(statuses(out), [200, 200])
        self.assertLess(out.index(b"[DONE]"), out.rindex(b"HTTP/1.1 200"))

    def test_keep_alive(self):
        c = http.client.HTTPConnection("127.0.0.1", self.s.port, timeout=5)
        c.connect()
        sock = c.sock
        for body, status in (('{"prompt":"a","max_tokens":1}', 200), ("{", 400), ('{"prompt":"a","n":0}', 400)):
            c.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            r = c.getresponse()
            self.assertEqual((r.status, len(r.read()) > 0), (status, True))
            self.assertIs(c.sock, sock, "an error closed the connection")
        for method, path, status in (("GET", "/nope", 404), ("GET", "/v1/completions", 405), ("POST", "/nope", 404)):
            c.request(method, path, "{}" if method == "POST" else None)
            r = c.getresponse()
            r.read()
            self.assertEqual(r.status, status)
            self.assertIs(c.sock, sock)
        c.close()

    def test_large_upload(self):
        body = b'{"prompt":"' + b"x" * 200000 + b'"}'
        out = self.s.raw(post_bytes("/tokenize", body, "Connection: close\r\n"))
        self.assertEqual(statuses(out), [200])
        self.assertIn(b'"count":200001', out)

    def test_byte_by_byte(self):
        with self.s.connect() as s:
            for b in post_bytes("/v1/completions", BODY, "Connection: close\r\n"):
                s.sendall(bytes([b]))
            self.assertEqual(statuses(read_all(s)), [200])

    def test_chunked(self):
        chunks = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(BODY[i:i + 5]), BODY[i:i + 5]) for i in range(0, len(BODY), 5))
        data = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunks + b"0\r\nTrailer: x\r\n\r\n"
        self.assertEqual(statuses(self.s.raw(data)), [200])

    def test_chunked_too_large(self):
        block = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        with self.s.connect() as s:
            s.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + block * 20 + b"0\r\n\r\n")
            self.assertEqual(statuses(read_all(s)), [413])

    def test_chunked_endless_is_cut(self):
        block = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        with self.s.connect() as s:
            s.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
            with self.assertRaises(OSError):
                for _ in range(1000):
                    s.sendall(block)

    def test_expect(self):
        with self.s.connect() as s:
            s.sendall(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BODY))
            self.assertTrue(s.recv(1000).startswith(b"HTTP/1.1 100"))
            s.sendall(BODY)
            self.assertEqual(statuses(read_all(s)), [200])

    def test_expect_refused_without_upload(self):
        out = self.s.raw(POST + b"Expect: 100-continue\r\nContent-Length: 50000000\r\n\r\n")
        self.assertEqual(statuses(out), [413])
        out = self.s.raw(b"POST /nope HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 50\r\n\r\n")
        self.assertEqual(statuses(out), [404])

    def test_head(self):
        out = self.s.raw(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n" + GET + b"Connection: close\r\n\r\n")
        self.assertEqual(statuses(out), [200, 200])
        head = out.split(b"\r\n\r\n", 1)
        self.assertIn(b"Content-Length: 16", head[0])
        self.assertTrue(head[1].startswith(b"HTTP/1.1"), "a HEAD reply had a body")
        self.assertEqual(statuses(self.s.raw(b"HEAD /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")), [405])

    def test_get_with_body(self):
        out = self.s.raw(GET + b"Content-Length: 5\r\n\r\nhello" + GET + b"Connection: close\r\n\r\n")
        self.assertEqual(statuses(out), [200, 200])

    def test_absolute_target(self):
        out = self.s.raw(b"GET http://a.example:80/health HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
        self.assertEqual(statuses(out), [200])

    def test_header_injection(self):
        out = self.s.raw(GET + b"X-Request-Id: a%0d%0aX-Evil: 1\r\nConnection: close\r\n\r\n")
        self.assertNotIn(b"Evil", out)
