#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent to the service, it answers with the right status or closes, takes no more memory
than it may, and goes on answering others."""

import hashlib
import os
import pathlib
import resource
import sys

from cairntest import KIB, MIB, SANITIZER, Case, main, random_bytes, scaled, seeded, wait_for
from rawhttp import Raw, ask, chunked, head

UPLOADS = "/v2/vm/blobs/uploads/"


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def raise_file_limit():
    """As many descriptors as may be had; how many that is."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def resident(process):
    """Bytes of memory that a process has."""
    text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * KIB


class HttpRobust(Case):
    def start_server(self, *arguments, **options):
        server = self.cairnd(arguments=["--log-level", "warn", *arguments], **options)
        self.port = server.port
        return server

    def setUp(self):
        super().setUp()
        raise_file_limit()
        self.server = None

    def serve(self, *arguments):
        self.server = self.start_server(*arguments)
        return self.server

    def put_blob(self, data):
        digest = digest_of(data)
        self.assertEqual(self.server.http.upload("vm", data, digest).status, 201)
        return f"/v2/vm/blobs/{digest}"

    def assert_serves(self):
        """An ordinary client gets its answers."""
        data = os.urandom(10000)
        path = self.put_blob(data)
        self.assertEqual(self.server.http.get(path).body, data)
        answer = self.server.http.get(path, Range="bytes=5-9")
        self.assertEqual((answer.status, answer.body), (206, data[5:10]))

    def assert_replies(self, cases):
        """Each request gets one of its statuses, with our body where we could give one; None stands
        for a connection that is closed without."""
        for name, data, statuses in cases:
            with self.subTest(name):
                answer = ask(self.port, data)
                status = answer.status if answer else None
                self.assertIn(status, statuses, answer and answer.body[:500])
        self.assert_serves()

    def assert_our_errors(self, cases):
        """The same where the answer is ours: one status, and the body of the OCI specification."""
        for name, data, status in cases:
            with self.subTest(name):
                answer = ask(self.port, data)
                self.assertIsNotNone(answer)
                self.assertEqual(answer.status, status, answer.body[:500])
                self.assertEqual(set(answer.json()["errors"][0]), {"code", "message", "detail"})
                self.assertIn("X-Request-Id", answer.headers)
        self.assert_serves()

    # -- Requests that are none ----------------------------------------------------------------

    def test_request_lines(self):
        self.serve()
        self.assert_our_errors([
            ("unknown method", head("BREW", "/healthz"), 501),
            ("lower case", head("get", "/healthz"), 501),
            ("a long method", head("G" * 60000, "/healthz"), 501),
            ("TRACE", head("TRACE", "/healthz"), 501),
            ("CONNECT", head("CONNECT", "example.org:443"), 501),
            ("OPTIONS *", head("OPTIONS", "*"), 501),
            ("no path", head("GET", "healthz"), 400),
            ("a space in the path", b"GET /heal thz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("long target", head("GET", "/" + "x" * 9000), 414),
            ("long query", head("GET", "/healthz?" + "x" * 9000), 414),
            ("many parameters", head("GET", "/healthz?" + "a=1&" * 100), 400),
            ("HTTP/1.2", head("GET", "/healthz", version="HTTP/1.2"), 505),
        ])
        self.assert_replies([
            ("HTTP/0.9", b"GET /healthz\r\n\r\n", (400, None)),
            ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505, 400, None)),
            ("another protocol", head("GET", "/healthz", version="FTTP/1.1"), (400, None)),
            ("a target of 1 MiB", head("GET", "/" + "x" * MIB), (414, 431, 400, None)),
            ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n",
             (400, None)),
            ("HTTP/1.0", head("GET", "/healthz", version="HTTP/1.0"), (200,)),
            ("absolute form", head("GET", "http://test/healthz"), (200,)),
        ])

    def test_path_tricks(self):
        self.serve()
        outside = ("/v2/../../../../etc/passwd", "/v2/%2e%2e/%2e%2e/etc/passwd", "/v2/./vm/tags/list",
                   "/v2/vm/%2E%2e/vm/tags/list", "/%2e%2e", "/..", "/v2/vm/blobs/..%00",
                   "/healthz%00", "/healthz%0d%0aX-A:b", "/v2/vm/tags/list%", "/v2/vm/tags/list%4",
                   "/v2/vm/tags/list%zz", "/v2/%ff%fe/tags/list", "/v2/a%2fb%2f..%2fc/tags/list",
                   "/v2//vm//tags/list", "/v2/vm%5c..%5c/tags/list", "/v2/-vm/tags/list",
                   "/v2/" + "a" * 300 + "/tags/list", "/v2/" + "a/" * 200 + "tags/list",
                   "/v2/_blobs/tags/list", "/v2/vm/\xe2\x82\xac/tags/list")
        self.assert_our_errors([(path, head("GET", path), 400) for path in outside])
        nothing = ("//healthz", "/healthz/", "//v2/", "/v2/vm/blobs/sha256:" + "0" * 64,
                   "/v2/vm%2fx/tags/list", "/v1/disks/vm:" + "t" * 128, "/HEALTHZ", "/healthz;a=b")
        self.assert_our_errors([(path, head("GET", path), 404) for path in nothing])
        names = self.server.files()
        self.assertFalse([name for name in names if ".." in name or "passwd" in name], names)

    def test_headers(self):
        self.serve()

        def with_headers(*headers):
            return head("GET", "/healthz", *headers)

        self.assert_our_errors([
            ("no Host", b"GET /healthz HTTP/1.1\r\n\r\n", 400),
            ("two Hosts", with_headers("Host: other"), 400),
            ("a space before the colon", with_headers("Content-Length : 5"), 400),
            ("a malformed name", with_headers("F(o: x"), 400),
            ("a control character", with_headers("Foo: a\x01b"), 400),
            ("101 headers", with_headers(*(f"A{i}: x" for i in range(100))), 431),
            ("33 KiB of headers", with_headers("A: " + "x" * (33 * KIB)), 431),
            ("two Ranges", with_headers("Range: bytes=0-1", "Range: bytes=2-3"), 400),
            ("an unknown expectation", with_headers("Expect: a-miracle"), 417),
        ])
        self.assert_replies([
            ("100 headers", with_headers(*(f"A{i}: x" for i in range(99))), (200,)),
            ("31 KiB of headers", with_headers("A: " + "x" * (31 * KIB)), (200,)),
            ("10,000 headers", with_headers(*(f"A{i}: x" for i in range(10000))), (431, None)),
            ("a header of 1 MiB", with_headers("A: " + "x" * MIB), (431, None)),
            ("no colon", with_headers("Foo"), (400, None)),
            ("bytes beyond ASCII", with_headers("Foo: \xe4\xff"), (200,)),
        ])

    def test_range_floods(self):
        """One range is served; a list of them is not worth the work, and gets everything or nothing."""
        self.serve()
        data = os.urandom(100)
        path = self.put_blob(data)
        cases = [("many", ",".join(f"{i}-{i}" for i in range(2000)), (200, 416)),
                 ("overlapping", ",".join(["0-"] * 2000), (200, 416)),
                 ("backwards", "9-5", (200, 416)), ("beyond", "100-", (416,)),
                 ("huge", "0-99999999999999999999999999", (200, 206, 416)),
                 ("negative", "--5", (200, 416)), ("words", "a-b", (200, 416)),
                 ("suffix", "-5", (206,)), ("spaces", " 0 - 5 ", (200, 206, 416))]
        for name, ranges, statuses in cases:
            with self.subTest(name):
                answer = ask(self.port, head("GET", path, f"Range: bytes={ranges}"))
                self.assertIn(answer.status, statuses)
                if answer.status == 200:
                    self.assertEqual(answer.body, data)
        self.assert_serves()

    # -- Where a request ends ------------------------------------------------------------------

    def test_smuggled_requests(self):
        """Where it is not certain which bytes are a body, none of them is taken for a request."""
        self.serve()
        hidden = head("DELETE", "/v2/vm/manifests/v1")
        body = chunked() + hidden
        cases = [
            ("length and encoding", ["Content-Length: 5", "Transfer-Encoding: chunked"], 400),
            ("encoding and length", ["Transfer-Encoding: chunked", "Content-Length: 5"], 400),
            ("two lengths", ["Content-Length: 5", f"Content-Length: {len(body)}"], 400),
            ("one length twice", ["Content-Length: 5", "Content-Length: 5"], 400),
            ("two encodings", ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], 400),
            ("another encoding", ["Transfer-Encoding: gzip, chunked"], 501),
            ("no encoding", ["Transfer-Encoding: identity"], 501),
            ("something like it", ["Transfer-Encoding: xchunked"], 501),
            ("a name with a space", ["Transfer-Encoding : chunked", "Content-Length: 5"], 400),
            ("a list of lengths", ["Content-Length: 5, 5"], 400),
            ("a signed length", ["Content-Length: +5"], 400),
            ("a negative length", ["Content-Length: -5"], 400),
            ("a length in hex", ["Content-Length: 0x5"], 400),
            ("a length with a tail", ["Content-Length: 5a"], 400),
            ("a length of 2^64-1", ["Content-Length: 18446744073709551615"], 400),
        ]
        for name, headers, status in cases:
            with self.subTest(name), Raw(self.port) as raw:
                raw.send(head("POST", UPLOADS, *headers) + body)
                said = raw.to_end()  # it does close
                self.assertTrue(said.startswith(b"HTTP/1.1 %d " % status), said[:300])
                self.assertNotIn(b"MANIFEST_UNKNOWN", said)
        with self.subTest("HTTP/1.0 with an encoding"), Raw(self.port) as raw:
            raw.send(head("POST", UPLOADS, "Transfer-Encoding: chunked", version="HTTP/1.0") + body)
            self.assertTrue(raw.to_end().startswith(b"HTTP/1.1 400 "))
        with self.subTest("a length that is too large"), Raw(self.port) as raw:
            raw.send(head("POST", UPLOADS, "Content-Length: 99999999999999999999999") + body)
            self.assertNotIn(b"MANIFEST_UNKNOWN", raw.to_end())
        self.assert_serves()

    def test_bad_chunks(self):
        """No more than one reply, then the connection is closed; and nothing that is malformed becomes
        a part of the upload."""
        self.serve("--min-rate-window", "3")
        cases = [("negative size", b"-5\r\nhello\r\n0\r\n\r\n"),
                 ("overlong size", b"F" * 17 + b"\r\nhello\r\n0\r\n\r\n"),
                 ("size of 2^64-1", b"F" * 16 + b"\r\nhello\r\n0\r\n\r\n"),
                 ("no size", b"\r\nhello\r\n0\r\n\r\n"),
                 ("size in C's hex", b"0x5\r\nhello\r\n0\r\n\r\n"),
                 ("words", b"five\r\nhello\r\n0\r\n\r\n"),
                 ("no end of line", b"5\r\nhelloXX0\r\n\r\n"),
                 ("a huge extension", b"5;" + b"x" * 300000 + b"\r\nhello\r\n0\r\n\r\n")]
        for name, body in cases:
            with self.subTest(name):
                started = self.server.http.request("POST", UPLOADS)
                path = started.headers["Location"]
                with Raw(self.port) as raw:
                    raw.send(head("PATCH", path, "Transfer-Encoding: chunked") + body)
                    said = raw.to_end()
                self.assertRegex(said[:12], rb"^(HTTP/1.1 [45])?")
                self.assertNotIn(b" 202 Accepted", said)
                self.assertEqual(self.server.http.get(path).headers["Range"], "0-0")
        with self.subTest("a missing end"):
            path = self.server.http.request("POST", UPLOADS).headers["Location"]
            with Raw(self.port) as raw:
                raw.send(head("PATCH", path, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n")
                raw.socket.shutdown(1)
                self.assertNotIn(b" 202 Accepted", raw.to_end())
        self.assert_serves()

    def test_chunks_of_every_size(self):
        """Well-formed ones: extensions, trailers, capitals, zeros in front."""
        self.serve()
        rng = seeded("chunks")
        data = random_bytes(rng, 50000)
        path = self.server.http.request("POST", UPLOADS).headers["Location"]
        body, off = b"", 0
        while off < len(data):
            n = rng.choice((1, 2, 15, 16, 17, 255, 4096, 10000))
            part = data[off:off + n]
            size = rng.choice((b"%x", b"%X", b"000%x", b"%x;name=value")) % len(part)
            body += size + b"\r\n" + part + b"\r\n"
            off += len(part)
        answer = ask(self.port, head("PATCH", path, "Transfer-Encoding: chunked") + body
                     + b"0\r\nX-Trailer: a\r\n\r\n")
        self.assertEqual(answer.status, 202)
        done = self.server.http.request("PUT", f"{path}?digest={digest_of(data)}", b"")
        self.assertEqual(done.status, 201, done.body)

    def test_trailing_garbage(self):
        """A reply is not spoilt by what follows its request."""
        self.serve()
        with Raw(self.port) as raw:
            raw.send(head("GET", "/healthz") + b"\x00\xff garbage \r\n\r\n")
            self.assertEqual(raw.reply().status, 200)
        self.assert_serves()

    def test_pipelining(self):
        """Each of many requests sent at once gets its own answer, in order."""
        self.serve()
        data = os.urandom(100)
        path = self.put_blob(data)
        rng = seeded("pipeline")
        requests, expected = [], []
        for number in range(300):
            kind = rng.randrange(4)
            tag = f"X-Request-Id: r{number}"
            requests.append((head("GET", path, f"Range: bytes={number % 100}-", tag),
                             head("HEAD", path, tag), head("GET", "/nothing", tag),
                             head("POST", UPLOADS + "?digest=" + digest_of(b"hello"), tag,
                                  "Content-Length: 5") + b"hello")[kind])
            expected.append((206, 200, 404, 201)[kind])
        with Raw(self.port) as raw:
            raw.send(b"".join(requests))
            for number, status in enumerate(expected):
                answer = raw.reply(bodyless=requests[number].startswith(b"HEAD"))
                self.assertEqual((answer.status, answer.headers["X-Request-Id"]),
                                 (status, f"r{number}"))

    def test_expect_continue(self):
        """A body that is not wanted is not asked for."""
        self.serve("--quota", "vm=1000")
        expect = "Expect: 100-continue"
        path = self.server.http.request("POST", UPLOADS).headers["Location"]
        with Raw(self.port) as raw:
            self.assertEqual(raw.ask(head("PATCH", path, expect, "Content-Length: 5")).status, 100)
            self.assertEqual(raw.ask(b"hello").status, 202)
        for name, data, status in (
                ("no such upload", head("PATCH", UPLOADS + "0" * 32, expect, "Content-Length: 5"),
                 404),
                ("no room", head("PATCH", path, expect, "Content-Length: 996"), 403),
                ("too large a manifest", head("PUT", "/v2/vm/manifests/v1", expect,
                                              "Content-Length: 99999999"), 413)):
            with self.subTest(name):
                self.assertEqual(ask(self.port, data).status, status)

    # -- Connections that end anywhere ---------------------------------------------------------

    def cut_at(self, data, length, reset):
        raw = Raw(self.port)
        raw.send(data[:length])
        if reset:
            raw.reset()
        else:
            raw.close()

    def test_uploads_that_die_at_any_byte(self):
        """An upload in one request and in chunks, cut behind each byte, by FIN and by RST: none of it
        is seen, and nothing is left open."""
        self.serve("--header-timeout", "4", "--min-rate-window", "4")
        body = random_bytes(seeded("cut"), 150)
        digest = digest_of(body)
        whole = head("POST", f"{UPLOADS}?digest={digest}", f"Content-Length: {len(body)}") + body
        path = self.server.http.request("POST", UPLOADS).headers["Location"]
        chunks = head("PATCH", path, "Transfer-Encoding: chunked") + chunked(body[:70], body[70:])
        for data in (whole, chunks):
            for length in range(0, len(data), scaled(7, 1, 1)):
                self.cut_at(data, length, reset=length % 2)
        self.assertEqual(self.server.http.request("HEAD", f"/v2/vm/blobs/{digest}").status, 404)
        self.assert_serves()
        self.wait_until_alone()

    def test_reads_that_die_at_any_byte(self):
        """A range request that is cut behind each byte, and replies that are cut in their midst."""
        self.serve("--header-timeout", "4", "--min-rate-window", "4")
        data = os.urandom(4 * MIB)
        path = self.put_blob(data)
        request = head("GET", path, "Range: bytes=1000-")
        for length in range(0, len(request), scaled(5, 1, 1)):
            self.cut_at(request, length, reset=length % 2)
        rng = seeded("replies")
        for number in range(scaled(20, 200, 2000)):
            raw = Raw(self.port)
            raw.send(request)
            raw.socket.recv(rng.choice((1, 10, 300, 5000, 100000)))
            raw.reset() if number % 2 else raw.close()
        self.assert_serves()
        self.wait_until_alone()

    def wait_until_alone(self):
        """Until there is no connection but the one that asks."""
        wait_for(lambda: self.server.metrics()["cairn_http_connections"] <= 1,
                 "connections to be closed", timeout=60)

    # -- Many, and slow ones -------------------------------------------------------------------

    def test_idle_connections(self):
        """Thousands of them take nothing from others, and no more memory than the buffer that a
        connection has from its first request on."""
        number = min(scaled(1000, 5000, 5000), raise_file_limit() - 200)
        server = self.serve("--max-connections", str(number + 100), "--max-connections-per-client",
                            "0", "--connection-timeout", "3600", "--connection-memory", "64K")
        self.assert_serves()
        before = resident(server)
        idle = [Raw(self.port) for _ in range(number)]
        wait_for(lambda: server.metrics()["cairn_http_connections"] >= number, "all to be there")
        self.assert_serves()
        silent = resident(server)
        for raw in idle:
            raw.send(head("GET", "/healthz"))
        for raw in idle:
            self.assertEqual(raw.reply().status, 200)
        self.assert_serves()
        used = resident(server)
        print(f"{number} idle connections: resident memory {before / MIB:.1f} MiB before, "
              f"{silent / MIB:.1f} MiB with them, {used / MIB:.1f} MiB after a request on each",
              file=sys.stderr)
        factor = 8 if SANITIZER else 1  # shadow memory
        self.assertLess(silent - before, number * 16 * KIB * factor)
        self.assertLess(used - before, number * (64 + 16) * KIB * factor)
        for raw in idle:
            raw.close()
        self.assert_serves()

    def hang(self, number, blob, disk):
        """Clients that hang: in their headers, in a body, in a reply from a file and in one that is
        made as it goes, so many of each kind."""
        clients = []
        for _ in range(number):
            slow_headers = Raw(self.port)
            slow_headers.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-")
            slow_body = Raw(self.port)
            slow_body.send(head("POST", f"{UPLOADS}?digest={digest_of(b'')}",
                                "Content-Length: 1000000") + b"x" * 1000)
            clients += [slow_headers, slow_body]
            for path in (blob, disk):
                reader = Raw(self.port, receive_buffer=4096)
                reader.send(head("GET", path))
                clients.append(reader)
        return clients

    def push_disk(self):
        """A disk of data that does not fit the kernel's buffers; its path."""
        file = self.tmp / "disk.raw"
        file.write_bytes(random_bytes(seeded("disk"), 16 * MIB))
        self.server.push(file, "vm:v1")
        return "/v1/disks/vm:v1/data"

    def test_slow_clients_take_nothing_from_others(self):
        """500 clients of each kind hang, on 4 workers; ordinary ones get their answers."""
        number = min(scaled(50, 500, 500), (raise_file_limit() - 200) // 4)
        server = self.serve("--workers", "4", "--min-rate", "0", "--header-timeout", "0",
                            "--connection-timeout", "3600", "--max-connections", "5000",
                            "--max-connections-per-client", "0")
        disk = self.push_disk()
        blob = self.put_blob(os.urandom(16 * MIB))
        before = resident(server)
        clients = self.hang(number, blob, disk)
        for _ in range(10):
            self.assert_serves()
        self.assertEqual(server.http.get(disk, Range="bytes=0-999").status, 206)
        after = resident(server)
        print(f"{len(clients)} slow clients: resident memory {before / MIB:.1f} MiB before, "
              f"{after / MIB:.1f} MiB after", file=sys.stderr)
        # a connection, and two buffers of each body and each reply that is made as it goes
        self.assertLess(after - before, number * 2 * MIB * (3 if SANITIZER else 1))
        for raw in clients:
            self.assertFalse(raw.is_closed())
            raw.reset()
        self.assert_serves()

    def test_slow_clients_are_cut(self):
        """Each kind of them, when its time is over; who is idle or merely not fast is not."""
        server = self.serve("--min-rate", "10", "--min-rate-window", "5", "--header-timeout", "5")
        disk = self.push_disk()
        blob = self.put_blob(os.urandom(16 * MIB))
        idle, patient = Raw(self.port), Raw(self.port)
        length = 16 * MIB  # more than is sent until all are cut, however often that is looked at
        self.assertEqual(idle.ask(head("GET", "/healthz")).status, 200)
        patient.send(head("POST", f"{UPLOADS}?digest={digest_of(b'x' * length)}",
                          f"Content-Length: {length}"))
        slow = self.hang(3, blob, disk)
        sent = 0

        def all_cut():
            nonlocal sent
            patient.send(b"x" * 100)
            sent += 100
            slow[0].send(b"y")  # headers that go on for ever are still too slow
            cuts = {name: value for name, value in server.metrics().items()
                    if name.startswith("cairn_http_connections_cut_total")}
            return [cuts[f'cairn_http_connections_cut_total{{reason="{reason}"}}']
                    for reason in ("headers", "body", "reply")] == [3, 3, 6]

        wait_for(all_cut, "twelve connections to be cut", timeout=60)
        self.assertTrue(all(raw.to_end() is not None for raw in slow))
        self.assertEqual(patient.ask(b"x" * (length - sent)).status, 201)
        self.assertEqual(idle.ask(head("GET", "/healthz")).status, 200)
        self.assert_serves()

    def test_request_deadline(self):
        """A request that takes longer is cut, however busy it is; one that does not is served."""
        server = self.serve("--request-deadline", "8", "--min-rate", "0")
        raw = Raw(self.port)
        raw.send(head("POST", f"{UPLOADS}?digest={digest_of(b'')}", "Content-Length: 1000000000"))

        def cut():
            raw.send(b"x" * 1000)
            return server.metrics()['cairn_http_connections_cut_total{reason="deadline"}'] == 1

        wait_for(cut, "the connection to be cut", timeout=60)
        self.assertEqual(raw.to_end(), b"")
        self.assert_serves()


if __name__ == "__main__":
    main()
