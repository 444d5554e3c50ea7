#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Limits of the service: what meets one is refused by name, what is just below it passes.  Those of
HTTP itself are test_http_robust.py's."""

import hashlib
import http.server
import json
import os
import threading

import qemu
from cairntest import CAIRN, KIB, MIB, Case, location_path, main, run, wait_for, with_query
from rawhttp import Raw, head

UPLOADS = "/v2/vm/blobs/uploads/"


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Told(http.server.BaseHTTPRequestHandler):
    """A service with an empty repository, of whose size it says what it is set to say."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status, body = 200, b'{"name": "vm", "tags": []}'
        if self.path.startswith("/v1/repositories/"):
            status, body = self.server.usage
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Limits(Case):
    def serve(self, *arguments, **options):
        self.server = self.cairnd(arguments=arguments, **options)
        self.http = self.server.http
        return self.server

    def post(self, data, repo="vm", **query):
        """A blob in one request."""
        path = with_query(f"/v2/{repo}/blobs/uploads/", digest=digest_of(data), **query)
        return self.http.request("POST", path, data)

    def open_upload(self, **query):
        answer = self.http.request("POST", with_query(UPLOADS, **query) if query else UPLOADS)
        self.assertEqual(answer.status, 202, answer.body)
        return location_path(answer)

    def assert_refused(self, answer, status, code, *words):
        self.assertEqual((answer.status, answer.error[0]), (status, code), answer.body)
        for word in words:
            self.assertIn(word, answer.error[1])

    def usage(self, repo="vm", server=None):
        answer = (server or self.server).http.get(f"/v1/repositories/{repo}")
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()

    def refusals(self, reason):
        return self.server.metrics()[f'cairn_quota_refusals_total{{reason="{reason}"}}']

    # -- Connections -----------------------------------------------------------------------------

    def test_connections(self):
        """As many as may be are served, one more is told so, and one that ends makes room."""
        self.serve("--max-connections", "5", "--max-connections-per-client", "0")
        self.check_connections(5, 503, "UNAVAILABLE", "all")

    def test_connections_of_one_client(self):
        self.serve("--max-connections-per-client", "5")
        self.check_connections(5, 429, "TOOMANYREQUESTS", "client")

    def check_connections(self, number, status, code, reason):
        def count():
            with Raw(self.server.port) as raw:
                answer = raw.ask(head("GET", "/metrics"))
            return answer.body.decode().splitlines() if answer and answer.status == 200 else []

        wait_for(lambda: "cairn_http_connections 1" in count(), "the harness's own to be closed")
        held = [Raw(self.server.port) for _ in range(number - 1)]
        for raw in held:
            self.assertEqual(raw.ask(head("GET", "/healthz")).status, 200)

        def fill():
            """Take the last place: that of count() may be free a moment later."""
            raw = Raw(self.server.port)
            answer = raw.ask(head("GET", "/healthz"))
            if answer and answer.status == 200:
                held.append(raw)
                return True
            return False

        wait_for(fill, "the last place")
        with Raw(self.server.port) as raw:
            answer = raw.reply()  # without having asked
        self.assertEqual((answer.status, json.loads(raw.received)["errors"][0]["code"]),
                         (status, code))
        held.pop().close()
        wait_for(fill, "room for one more")
        held.pop().close()
        wait_for(lambda: f'cairn_http_connections_refused_total{{reason="{reason}"}} 0'
                 not in count() and count(), "a place to ask from")

    # -- Sizes -----------------------------------------------------------------------------------

    def test_blob_size(self):
        self.serve("--max-upload", "1M")
        self.assertEqual(self.post(bytes(MIB)).status, 201)
        self.assert_refused(self.post(bytes(MIB + 1)), 413, "SIZE_INVALID", "1048576")
        self.assert_refused(self.http.request("POST", f"{UPLOADS}?size={MIB + 1}"), 413,
                            "SIZE_INVALID", "1048576")

    def test_manifest_size(self):
        self.serve("--max-manifest", "4K")
        large = self.http.request("PUT", "/v2/vm/manifests/v1", b" " * (4 * KIB + 1))
        self.assert_refused(large, 413, "SIZE_INVALID")
        fits = self.http.request("PUT", "/v2/vm/manifests/v1", b" " * (4 * KIB))
        self.assert_refused(fits, 400, "MANIFEST_INVALID")  # for what it is, not for its size

    def test_depth_and_virtual_size(self):
        """A chain of two layers of 2 MiB: at the limits, and one beyond each."""
        base, top = self.tmp / "base.raw", self.tmp / "top.qcow2"
        base.write_bytes(os.urandom(2 * MIB))
        qemu.img("create", "-q", "-u", "-f", "qcow2", "-b", "base.raw", "-F", "raw", top, 2 * MIB)
        for name, arguments, word in (
                ("fits", ("--max-depth", "2", "--max-virtual-size", "2M"), ""),
                ("deep", ("--max-depth", "1"), "depth|layers"),
                ("large", ("--max-virtual-size", "1M"), "1048576")):
            with self.subTest(name):
                server = self.cairnd(name, arguments=arguments)
                pushed = server.cairn("push", top, "vm:v1", code=1 if word else 0)
                if word:
                    self.assertRegex(pushed.stderr.decode(), word)

    # -- Quota -----------------------------------------------------------------------------------

    def test_quota_in_one_request(self):
        """Refused by the Content-Length, before the body is sent."""
        self.serve("--quota", "vm=1000")
        self.assertEqual(self.post(b"a" * 600).status, 201)
        self.assert_refused(self.post(b"b" * 401), 403, "DENIED", "600", "1000", "401")
        with Raw(self.server.port) as raw:
            path = f"{UPLOADS}?digest={digest_of(b'b' * 401)}"
            answer = raw.ask(head("POST", path, "Content-Length: 401", "Expect: 100-continue"))
            self.assertEqual(answer.status, 403)
        self.assertEqual(self.post(b"c" * 400).status, 201)
        self.assertEqual(self.post(b"d").status, 403)
        self.assertEqual(self.post(b"d" * 5000, repo="other").status, 201)
        usage = self.usage()
        self.assertEqual((usage["usedBytes"], usage["allowedBytes"], usage["blobs"]),
                         (1000, 1000, 2))
        self.assertIsNone(self.usage("other")["allowedBytes"])
        self.assertEqual(self.refusals("bytes"), 3)

    def test_quota_of_an_upload_whose_size_is_said(self):
        self.serve("--quota", "1000")
        self.assert_refused(self.http.request("POST", f"{UPLOADS}?size=1001"), 403, "DENIED")
        path = self.open_upload(size=1000)
        self.assertIn("size=1000", path)
        self.assertEqual(self.http.request("PATCH", path, b"a" * 600).status, 202)
        self.assert_refused(self.http.request("PATCH", path, b"a" * 401), 413, "SIZE_INVALID")
        early = self.http.request("PUT", with_query(path, digest=digest_of(b"a" * 600)), b"")
        self.assert_refused(early, 400, "SIZE_INVALID", "600", "1000")
        done = with_query(path, digest=digest_of(b"a" * 1000))
        self.assertEqual(self.http.request("PUT", done, b"a" * 400).status, 201)
        for size in ("", "-1", "1.5", "0x10", "99999999999999999999999"):
            self.assert_refused(self.http.request("POST", f"{UPLOADS}?size={size}"), 400,
                                "SIZE_INVALID")

    def test_quota_of_an_upload_whose_size_is_not_known(self):
        """Chunked and without a word: refused in its midst, and what fits is taken."""
        self.serve("--quota", "1000000")
        path = self.open_upload()

        def send(data):  # what has no length is sent chunked
            yield data[:len(data) // 2]
            yield data[len(data) // 2:]

        too_much = self.http.request("PATCH", path, send(b"a" * 1000001))
        self.assert_refused(too_much, 403, "DENIED", "1000000")
        path = self.open_upload()
        data = b"b" * 1000000
        self.assertEqual(self.http.request("PATCH", path, send(data)).status, 202)
        done = self.http.request("PUT", with_query(path, digest=digest_of(data)), b"")
        self.assertEqual(done.status, 201, done.body)

    def test_quota_counts_mounts(self):
        self.serve("--quota", "vm=1000")
        blobs = [b"a" * 1000, b"b" * 1]
        for data in blobs:
            self.assertEqual(self.post(data, repo="other").status, 201)

        def mount(data):
            return self.http.request("POST", with_query(UPLOADS, mount=digest_of(data),
                                                        **{"from": "other"}))

        self.assertEqual(mount(blobs[0]).status, 201)
        self.assert_refused(mount(blobs[1]), 403, "DENIED", "1000")
        self.assertEqual(mount(blobs[0]).status, 201)  # it has it
        deleted = self.http.request("DELETE", f"/v2/vm/blobs/{digest_of(blobs[0])}")
        self.assertEqual(deleted.status, 202)
        self.assertEqual(mount(blobs[1]).status, 201)

    def test_quota_of_two_servers_is_one(self):
        first = self.serve("--quota", "1000")
        self.assertEqual(self.post(b"a" * 400).status, 201)
        second = self.cairnd("second", store=first.store, arguments=["--quota", "1000"])
        path = with_query(UPLOADS, digest=digest_of(b"b" * 400))
        self.assertEqual(second.http.request("POST", path, b"b" * 400).status, 201)
        self.assertEqual(self.post(b"c" * 201).status, 403)
        self.assertEqual(self.post(b"d" * 200).status, 201)
        self.assertEqual(self.usage(server=second)["allowedBytes"], 1000)

    def test_push_says_that_the_quota_is_full(self):
        """One clear line, and nothing of the layer was sent."""
        self.serve("--quota", "vm=1M")
        file = self.tmp / "disk.raw"
        file.write_bytes(os.urandom(8 * MIB))
        said = self.server.cairn("push", file, "vm:v1", code=1).stderr.decode()
        self.assertIn("repository vm holds", said)
        self.assertIn("8388608 more do not fit", said)
        self.assertEqual(sum(size for name, size in self.server.files().items()
                             if name.startswith("uploads/")), 0)
        file.write_bytes(os.urandom(MIB // 2))
        self.server.push(file, "vm:v1")

    # -- Quota, as clients see it ----------------------------------------------------------------

    def test_usage_is_in_facts_of_a_repository(self):
        file = self.tmp / "disk.raw"
        file.write_bytes(os.urandom(MIB))
        self.serve("--quota", "vm=3M").push(file, "vm:v1")
        self.server.push(file, "free:v1")
        for repo, usage, text in (
                ("vm", {"usedBytes": self.usage("vm")["usedBytes"], "allowedBytes": 3 * MIB},
                 "1.0 MiB used of 3.0 MiB"),
                ("free", {"usedBytes": self.usage("free")["usedBytes"]}, "1.0 MiB used")):
            self.assertGreaterEqual(usage["usedBytes"], MIB)
            for command, operand in (("ls", repo), ("info", f"{repo}:v1")):
                with self.subTest(command=command, repo=repo):
                    told = self.server.cairn(command, "--json", operand).json()
                    self.assertEqual(told["usage"], usage)
                    said = self.server.cairn(command, operand).stdout.decode()
                    self.assertEqual([line.removeprefix("repository:").strip()
                                      for line in said.splitlines() if " used" in line], [text])
        self.assertNotIn("usage", self.server.cairn("ls", "--json").json())

    def test_a_service_that_does_not_tell_the_usage(self):
        service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Told)
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        self.addCleanup(service.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(service.shutdown)

        def ls(*arguments, code=0):
            return run(CAIRN, "ls", *arguments, "vm", code=code,
                       env={"CAIRN_SERVER": f"http://127.0.0.1:{service.server_port}"})

        for service.usage in ((404, b"none"), (403, b""), (401, b""), (500, b"broken")):
            with self.subTest(status=service.usage[0]):
                self.assertEqual(ls("--json").json(), {"name": "vm", "tags": []})
                self.assertEqual(ls().stdout, b"")
        for body, usage in ((b'{"usedBytes": 5, "allowedBytes": null}', {"usedBytes": 5}),
                            (b'{"usedBytes": 5, "allowedBytes": 0}',
                             {"usedBytes": 5, "allowedBytes": 0})):
            service.usage = 200, body
            self.assertEqual(ls("--json").json()["usage"], usage)
        for body in (b"", b"no JSON", b"[]", b"{}", b'{"usedBytes": "5"}', b'{"usedBytes": 1.5}'):
            service.usage = 200, body
            self.assertIn("vm: ", ls(code=1).stderr.decode())

    # -- Unfinished uploads ----------------------------------------------------------------------

    def test_number_of_uploads(self):
        self.serve("--max-uploads", "3")
        paths = [self.open_upload() for _ in range(3)]
        self.assert_refused(self.http.request("POST", UPLOADS), 403, "DENIED", "limit 3")
        self.assertEqual(self.http.request("POST", UPLOADS.replace("vm", "other")).status, 202)
        self.assertEqual(self.http.request("DELETE", paths[0]).status, 204)
        self.open_upload()
        self.assertEqual(self.refusals("uploads"), 1)

    def test_bytes_of_unfinished_uploads(self):
        server = self.serve("--max-unfinished", "1M")
        path = self.open_upload()
        self.assertEqual(self.http.request("PATCH", path, bytes(MIB - 1)).status, 202)
        other = self.open_upload()
        server.stop()
        self.processes.remove(server)
        self.serve("--max-unfinished", "1M", store=server.store)  # counts them now
        self.assert_refused(self.http.request("PATCH", other, bytes(2)), 403, "DENIED")
        self.assertEqual(self.http.request("PATCH", other, bytes(1)).status, 202)
        done = with_query(path, digest=digest_of(bytes(MIB - 1)))
        self.assertEqual(self.http.request("PUT", done, b"").status, 201)

    def test_old_uploads_expire(self):
        """At the start, those to which nothing was added for --upload-age."""
        server = self.serve()
        old, young = self.open_upload(), self.open_upload()
        folder = server.store / "uploads" / old.rpartition("/")[2]
        for path in (folder / "data", folder):
            os.utime(path, (1000000000, 1000000000))
        server.stop()
        self.processes.remove(server)
        self.serve("--upload-age", "3600", store=server.store)
        self.assertEqual(self.http.get(old).status, 404)
        self.assertEqual(self.http.get(young).status, 204)


if __name__ == "__main__":
    main()
