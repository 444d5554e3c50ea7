#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Malformed images: each is refused with an error that names the layer, the field and the value; the
server opens nothing outside its store on their account, and goes on serving."""

import hashlib
import json
import os
import re
import struct

import qemu
from cairntest import (CAIRN, Case, MIB, SANITIZER, location_path, main, run, seeded, wait_for,
                       with_query)

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
QCOW2, RAW = "application/vnd.cairn.layer.v1.qcow2", "application/vnd.cairn.layer.v1.raw"
EMPTY = b"{}"
U64 = (1 << 64) - 1


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def manifest_of(layers):
    """Bytes of a disk's manifest; layers: (digest, size, media type), base first."""
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(EMPTY),
             "size": 2, "data": "e30="}
    return json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
        "artifactType": "application/vnd.cairn.disk.v1", "config": empty,
        "layers": [{"mediaType": kind, "digest": digest, "size": size}
                   for digest, size, kind in layers]}).encode()


class Image(bytearray):
    """A good image, to be made bad."""

    def get(self, off, width):
        return int.from_bytes(self[off:off + width], "big")

    def put(self, off, width, value):
        self[off:off + width] = value.to_bytes(width, "big")
        return self

    @property
    def cluster(self):
        return 1 << self.get(20, 4)

    @property
    def l1(self):
        return self.get(40, 8)

    def l2(self, number=0):
        return self.get(self.l1 + 8 * number, 8) & 0x00FFFFFFFFFFFE00

    def put_extension(self, kind, data):
        """As the first header extension."""
        body = struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
        start = self.get(100, 4)
        self[start:start] = body
        del self[self.cluster:self.cluster + len(body)]
        return self

    def put_backing_name(self, name):
        self.put(8, 8, self.cluster - 1024).put(16, 4, len(name))
        self[self.cluster - 1024:self.cluster - 1024 + len(name)] = name
        return self


INCOMPATIBLE, HEADER_LENGTH = 72, 100

# What is poked into which good image, and words that the error must have: the field and the value.
POKES = (
    ("magic", "plain", lambda i: i.put(0, 4, 0x41414141), ("magic", "0x41414141")),
    ("version 1", "plain", lambda i: i.put(4, 4, 1), ("version", "1")),
    ("version 4", "plain", lambda i: i.put(4, 4, 4), ("version", "4")),
    ("cluster_bits 8", "plain", lambda i: i.put(20, 4, 8), ("cluster_bits", "8")),
    ("cluster_bits 22", "plain", lambda i: i.put(20, 4, 22), ("cluster_bits", "22")),
    ("cluster_bits 2^32-1", "plain", lambda i: i.put(20, 4, 0xFFFFFFFF),
     ("cluster_bits", "4294967295")),
    ("size 2^64-1", "plain", lambda i: i.put(24, 8, U64), ("size", str(U64))),
    ("size 2^62", "plain", lambda i: i.put(24, 8, 1 << 62), ("size", str(1 << 62))),
    ("size beyond the L1 table", "plain", lambda i: i.put(24, 8, 1 << 40), ("l1_size",)),
    ("crypt_method AES", "plain", lambda i: i.put(32, 4, 1), ("crypt_method", "1")),
    ("crypt_method LUKS", "plain", lambda i: i.put(32, 4, 2), ("crypt_method", "2")),
    ("crypt_method 9", "plain", lambda i: i.put(32, 4, 9), ("crypt_method", "9")),
    ("l1_size 0", "plain", lambda i: i.put(36, 4, 0), ("l1_size", "0")),
    ("l1_size 2^32-1", "plain", lambda i: i.put(36, 4, 0xFFFFFFFF), ("l1_size", "4294967295")),
    ("l1_table_offset unaligned", "plain", lambda i: i.put(40, 8, i.l1 + 512),
     ("L1 table", "align")),
    ("l1_table_offset in the header", "plain", lambda i: i.put(40, 8, 0),
     ("L1 table", "0x0", "header")),
    ("l1_table_offset past the end", "plain", lambda i: i.put(40, 8, 1 << 40),
     ("L1 table", hex(1 << 40))),
    ("l1_table_offset overflow", "plain", lambda i: i.put(40, 8, U64 - 0xFFFF),
     ("L1 table", hex(U64 - 0xFFFF))),
    ("refcount_table_offset unaligned", "plain", lambda i: i.put(48, 8, 0x10200),
     ("refcount table", "0x10200")),
    ("refcount_table_offset past the end", "plain", lambda i: i.put(48, 8, 1 << 50),
     ("refcount table", hex(1 << 50))),
    ("refcount_table_clusters 2^32-1", "plain", lambda i: i.put(56, 4, 0xFFFFFFFF),
     ("refcount_table_clusters", "4294967295")),
    ("corrupt bit", "plain", lambda i: i.put(INCOMPATIBLE, 8, 2), ("corrupt",)),
    ("unknown incompatible bit 5", "plain", lambda i: i.put(INCOMPATIBLE, 8, 1 << 5),
     ("incompatible", "5")),
    ("unknown incompatible bit 63", "plain", lambda i: i.put(INCOMPATIBLE, 8, 1 << 63),
     ("incompatible", "63")),
    ("unknown incompatible bit with a name", "plain",
     lambda i: i.put(INCOMPATIBLE, 8, 1 << 9).put_extension(
         0x6803F857, b"\0\x09" + b"time travel".ljust(46, b"\0")), ("incompatible", "time travel")),
    ("external data file", "plain",
     lambda i: i.put(INCOMPATIBLE, 8, 4).put_extension(0x44415441, b"/etc/passwd"),
     ("data file",)),
    ("refcount_order 7", "plain", lambda i: i.put(96, 4, 7), ("refcount_order", "7")),
    ("header_length 96", "plain", lambda i: i.put(HEADER_LENGTH, 4, 96), ("header_length", "96")),
    ("header_length 2^32-1", "plain", lambda i: i.put(HEADER_LENGTH, 4, 0xFFFFFFFF),
     ("header_length", "4294967295")),
    ("compression_type without its bit", "plain", lambda i: i.put(104, 1, 1),
     ("compression", "1")),
    ("compression_type 9", "plain", lambda i: i.put(INCOMPATIBLE, 8, 8).put(104, 1, 9),
     ("compression_type", "9")),
    ("backing_file_size 5000", "plain", lambda i: i.put(8, 8, 512).put(16, 4, 5000),
     ("backing_file_size", "5000")),
    ("backing_file_offset past the header's cluster", "plain",
     lambda i: i.put(8, 8, 1 << 33).put(16, 4, 11), ("backing_file_offset", hex(1 << 33))),
    ("extension longer than the header", "plain",
     lambda i: i.put(i.get(HEADER_LENGTH, 4) + 4, 4, 0x7FFFFFF0), ("extension", "2147483632")),
    ("Cairn extension of a wrong length", "plain", lambda i: i.put_extension(0x434E5250, b"abc"),
     ("recorded parent", "abc")),
    ("extended L2 with small clusters", "small", lambda i: i.put(INCOMPATIBLE, 8, 16),
     ("cluster_bits", "12")),
    ("L1 entry unaligned", "plain", lambda i: i.put(i.l1, 8, 1 << 63 | (i.l2() + 512)),
     ("L2 table 0", "align")),
    ("L1 entry past the end", "plain", lambda i: i.put(i.l1, 8, 1 << 63 | 1 << 41),
     ("L2 table 0", hex(1 << 41))),
    ("L1 entry with reserved bits", "plain", lambda i: i.put(i.l1, 8, 1 << 60 | i.l2()), ("L1",)),
    ("L2 entry unaligned", "plain", lambda i: i.put(i.l2(), 8, 1 << 63 | 0x50200), ("L2", "0x50200")),
    ("L2 entry past the end", "plain", lambda i: i.put(i.l2(), 8, 1 << 63 | 1 << 42), ("L2",)),
    ("L2 entry at 2^56 less a cluster", "plain",
     lambda i: i.put(i.l2(), 8, 1 << 63 | (1 << 56) - i.cluster), ("L2",)),
    ("L2 entry with reserved bits", "plain", lambda i: i.put(i.l2(), 8, 1 << 59 | 0x50000), ("L2",)),
    ("L2 entry into the header", "plain", lambda i: i.put(i.l2(), 8, 1 << 63 | 1 << 9), ("L2",)),
    ("compressed cluster past the end", "compressed",
     lambda i: i.put(i.l2(), 8, 1 << 62 | 1 << 45), ("L2", "compressed")),
    ("subcluster both allocated and zero", "extended", lambda i: i.put(i.l2() + 8, 8, U64),
     ("subcluster",)),
    ("subclusters allocated of a cluster that is not", "extended",
     lambda i: i.put(i.l2(), 16, 0x00000000FFFFFFFF), ("L2",)),
    ("cut in the header", "plain", lambda i: i[:50], ("50",)),
    ("empty", "plain", lambda i: i[:0], ("0",)),
    ("cut before the L1 table", "plain", lambda i: i[:i.l1], ("L1 table",)),
)


OF_THE_C_LIBRARY = ("/proc/sys/vm/overcommit_memory", "/etc/localtime")


class Tracer:
    """strace of a server: which paths it opened since the mark."""

    def __init__(self, path):
        self.path, self.offset = path, 0

    @property
    def wrapper(self):
        return ["strace", "-D", "-f", "-qq", "-y", "-s", "4096", "-o", self.path,
                "-e", "trace=open,openat,openat2,creat,connect,execve"]

    def mark(self):
        self.offset = self.path.stat().st_size

    def lines(self):
        return self.path.read_text(errors="replace")[self.offset:].splitlines()

    def outside(self, store):
        """Lines that open, connect to or run something that is not in the store."""
        return [line for line in self.lines() if self.is_outside(line, store)]

    @staticmethod
    def is_outside(line, store):
        found = re.search(r'open(?:at2?)?\((?:(AT_FDCWD|\d+)(?:<(.*?)>)?, )?"(.*?)"', line)
        if not found:
            return "connect(" in line or "execve(" in line
        _, folder, path = found.groups()
        full = os.path.normpath(os.path.join(folder or "/", path))
        return full not in OF_THE_C_LIBRARY and not (full + "/").startswith(f"{store}/")


class BadInput(Case):
    def setUp(self):
        super().setUp()
        self.tracer = Tracer(self.tmp / "strace")
        # Leaks cannot be looked for under ptrace.
        env = {"ASAN_OPTIONS": "detect_leaks=0"} if SANITIZER else {}
        self.server = self.cairnd(wrapper=self.tracer.wrapper, env=env)
        self.store = os.path.realpath(self.server.store)
        self.good = {name: self.make_image(name) for name in
                     ("plain", "small", "compressed", "extended")}
        self.publish([self.good["plain"]], "witness:v1")
        self.witness = self.server.http.data("witness:v1")
        self.tracer.mark()

    def tearDown(self):
        """Whatever a test did: nothing outside was opened, and the server serves."""
        self.publish([self.good["small"]], "last:v1")
        self.assertEqual(self.server.http.data("witness:v1"), self.witness)
        wait_for(self.traced_to_here, "strace to have seen the last requests")
        self.assertEqual(self.tracer.outside(self.store), [])

    def traced_to_here(self):
        """strace writes behind: has it come to what tearDown published?"""
        return any(digest_of(self.good["small"])[7:] in line and "openat" in line
                   for line in self.tracer.lines())

    # -- Making and publishing --------------------------------------------------------------------

    def make_image(self, kind):
        options = {"plain": "cluster_size=64k", "small": "cluster_size=4k",
                   "compressed": "cluster_size=64k", "extended": "cluster_size=16k,extended_l2=on"}
        path, source = self.tmp / f"{kind}.qcow2", self.tmp / "source"
        source.write_bytes(seeded("bad input").randbytes(512) + b"0123456789abcdef" * 2016)
        qemu.img("create", "-q", "-f", "qcow2", "-o", options[kind], path, 4 * MIB)
        flag = "-c " if kind == "compressed" else ""
        qemu.io(path, f"write -q {flag}-s {source} 0 64k", f"write -q {flag}-s {source} 1M 128k")
        return path.read_bytes()

    def upload(self, repo, data):
        digest = digest_of(data)
        answer = self.server.http.upload(repo, data, digest)
        self.assertEqual(answer.status, 201, answer.body)
        return digest

    def publish(self, layers, ref, kinds=None):
        """The answer to the PUT of a manifest over these layers, base first."""
        repo, tag = ref.split(":")
        kinds = kinds or [QCOW2] * len(layers)
        self.upload(repo, EMPTY)
        entries = [(self.upload(repo, bytes(data)), len(data), kind)
                   for data, kind in zip(layers, kinds, strict=True)]
        return self.put_manifest(repo, tag, manifest_of(entries))

    def put_manifest(self, repo, tag, body):
        return self.server.http.request("PUT", f"/v2/{repo}/manifests/{tag}", body,
                                        {"Content-Type": MANIFEST_TYPE})

    # -- Images -----------------------------------------------------------------------------------

    def refusal(self, layers, words, digest):
        """None if publishing is refused as it should be, else what is wrong."""
        before = self.server.files()
        answer = self.publish(layers, "bad/image:v1")
        if answer.status != 400:
            return f"status {answer.status}: {answer.body[:300]}"
        code, message = answer.error
        if code not in ("MANIFEST_INVALID", "UNSUPPORTED"):
            return f"code {code}: {message}"
        missing = [word for word in (digest, *words) if word.lower() not in message.lower()]
        if missing:
            return f"the message lacks {missing}: {message}"
        left = [name for name in set(self.server.files()) - set(before)
                if not name.startswith(("blobs/", "repos/bad/image/_blobs/"))]
        return f"left in the store: {left}" if left else None

    def test_malformed_images_are_refused(self):
        """As the only layer, and on top of a good one."""
        wrong = []
        for name, kind, poke, words in POKES:
            bad = bytes(poke(Image(self.good[kind])))
            digest = digest_of(bad)
            for layers in ([bad], [self.good["plain"], bad]):
                found = self.refusal(layers, words, digest)
                if found:
                    wrong.append(f"{name}, {len(layers)} layers: {found}")
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))
        print(f"      {len(POKES)} malformed images refused", flush=True)

    def test_client_refuses_them_too(self):
        """`cairn image map` and `push`: exit code 1 and one line that says what is wrong."""
        path, wrong = self.tmp / "bad.qcow2", []
        for name, kind, poke, words in POKES:
            path.write_bytes(bytes(poke(Image(self.good[kind]))))
            result = run(CAIRN, "image", "map", "--format", "qcow2", path, code=None)
            said = result.stderr.decode(errors="replace")
            if result.code != 1 or said.count("\n") != 1:
                wrong.append(f"{name}: {result.describe()}")
            wrong += [f"{name}: image map does not say {word!r}: {said}" for word in words
                      if word.lower() not in said.lower()]
            run(CAIRN, "image", "info", "--format", "qcow2", path, code=None)
            result = self.server.cairn("push", "--format", "qcow2", path, "bad/push:v1", code=None)
            if result.code != 1:
                wrong.append(f"{name}: {result.describe()}")
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))

    def test_garbage_in_a_compressed_cluster(self):
        """Found when it is read: the answer is cut short, never wrong, and the log says why."""
        image = Image(self.good["compressed"])
        entry = image.get(image.l2(), 8)
        host_off = entry & ((1 << (62 - (image.get(20, 4) - 8))) - 1)
        image[host_off:host_off + 64] = b"\xff" * 64
        digest = digest_of(bytes(image))
        self.assertEqual(self.publish([image], "bad/data:v1").status, 201)
        try:
            answer = self.server.http.get("/v1/disks/bad/data:v1/data", Range="bytes=0-4095")
            self.assertGreaterEqual(answer.status, 500, answer.body[:100])
        except OSError:
            pass  # cut
        except Exception as error:  # http.client's own way to say it
            self.assertEqual(type(error).__name__, "IncompleteRead")
        wait_for(lambda: digest in self.server.text(), "the log to name the layer")
        answer = self.server.http.get("/v1/disks/bad/data:v1/data", Range="bytes=2097152-2101247")
        self.assertEqual((answer.status, answer.body), (206, bytes(4096)))
        disk = self.attach(self.server, "bad/data:v1", "--read-only")
        result = qemu.run("qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", disk.uri, code=None)
        self.assertIn("error", (result.stdout + result.stderr).decode().lower())
        disk.stop()

    def test_names_inside_images_are_never_opened(self):
        secret = self.tmp / "secret"
        secret.write_bytes(b"secret!!" * 8192)
        names = (b"/etc/passwd", str(secret).encode(), b"../../../../../../etc/passwd",
                 b'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
                 b"nbd://127.0.0.1:10809/x", b"http://127.0.0.1:1/x", b"\n\x1b[31m\xff")
        for number, name in enumerate(names):
            image = Image(self.good["plain"]).put_backing_name(name)
            ref = f"bad/names{number}:v1"
            for layers in ([image], [self.good["plain"], image]):
                with self.subTest(name=name, layers=len(layers)):
                    answer = self.publish(layers, ref)
                    if answer.status == 201:
                        self.check_disk_with_name(ref, number, len(layers))
                    else:
                        self.assertEqual(answer.status, 400)
                        self.assertIn("backing", answer.error[1])

    def check_disk_with_name(self, ref, number, depth):
        """Accepted: then the name has no effect, at the server and at whoever pulls."""
        self.assertEqual(self.server.http.data(ref), self.witness)
        copy = self.tmp / f"copy{number}-{depth}"
        result = self.server.cairn("pull", "--chain", ref, copy, code=None)
        if result.code == 0:
            top = next(copy.glob("top.*"))
            listed = qemu.img("info", "--backing-chain", "--output=json", top).json()
            for image in listed:
                folder = os.path.realpath(os.path.dirname(image["filename"]))
                self.assertEqual(folder, os.path.realpath(copy))

    # -- Manifests and uploads --------------------------------------------------------------------

    def assert_refused(self, answer, statuses, *codes):
        self.assertIn(answer.status, statuses, answer.body[:500])
        self.assertIn(answer.error[0], codes, answer.body[:500])

    def assert_nothing_stored(self, before):
        """Upload sessions may remain, they expire; all else is as it was."""
        now = {name for name in self.server.files() if not name.startswith("uploads/")}
        self.assertEqual(now, {name for name in before if not name.startswith("uploads/")})

    def test_wrong_digest(self):
        before = self.server.files()
        wrong = digest_of(b"something else")
        answer = self.server.http.upload("vm", b"some bytes", wrong)
        self.assert_refused(answer, (400,), "DIGEST_INVALID")
        self.assertEqual(self.server.http.get(f"/v2/vm/blobs/{wrong}").status, 404)
        self.assertEqual(self.server.http.get(f"/v2/vm/blobs/{digest_of(b'some bytes')}").status,
                         404)
        for malformed in ("sha256:12", "md5:" + "0" * 32, "", "sha256:" + "G" * 64):
            self.assert_refused(self.server.http.upload("vm", b"x", malformed), (400,),
                                "DIGEST_INVALID")
        self.assert_nothing_stored(before)

    def test_chunks_with_gaps_and_overlaps(self):
        before = self.server.files()
        http = self.server.http
        started = http.request("POST", "/v2/vm/blobs/uploads/")
        where = location_path(started)

        def patch(first, data):
            return http.request("PATCH", where, data, {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{first}-{first + len(data) - 1}"})
        self.assertEqual(patch(0, b"a" * 1000).status, 202)
        for first in (500, 0, 1001, 5000):
            self.assertEqual(patch(first, b"b" * 1000).status, 416, f"chunk at {first}")
        status = http.get(where)
        self.assertEqual((status.status, status.headers["Range"]), (204, "0-999"))
        self.assertEqual(patch(1000, b"c" * 10).status, 202)
        data = b"a" * 1000 + b"c" * 10
        done = http.request("PUT", with_query(where, digest=digest_of(data)))
        self.assertEqual(done.status, 201, done.body)
        self.assertEqual(http.get(f"/v2/vm/blobs/{digest_of(data)}").body, data)
        extra = {name for name in self.server.files() if name not in before}
        self.assertFalse([name for name in extra if name.startswith("uploads/")], extra)

    def test_manifests_that_do_not_fit(self):
        plain = self.good["plain"]
        good = (self.upload("vm", plain), len(plain), QCOW2)
        raw = (self.upload("vm", b"r" * 4096), 4096, RAW)
        self.upload("vm", EMPTY)
        before = self.server.files()
        unknown = (digest_of(b"never uploaded"), 14, QCOW2)
        self.assert_refused(self.put_manifest("vm", "v1", manifest_of([good, unknown])),
                            (400, 404), "MANIFEST_BLOB_UNKNOWN")
        for name, body in (
                ("raw above", manifest_of([good, raw])),
                ("no layers", manifest_of([])),
                ("a wrong size", manifest_of([(good[0], good[1] + 1, QCOW2)])),
                ("a media type for another format", manifest_of([(raw[0], raw[1], QCOW2)])),
                ("an unknown media type", manifest_of([(good[0], good[1], "text/plain")])),
                ("not JSON", b"{"), ("not an object", b"[]"), ("nothing", b""),
                ("deep nesting", b"[" * 100000)):
            with self.subTest(manifest=name):
                answer = self.put_manifest("vm", "v1", body)
                self.assert_refused(answer, (400,), "MANIFEST_INVALID", "SIZE_INVALID",
                                    "UNSUPPORTED", "MANIFEST_BLOB_UNKNOWN")
        self.assert_nothing_stored(before)

    def test_layers_out_of_order(self):
        """An active layer knows what it was started on: another order is refused."""
        base = self.tmp / "base.qcow2"
        base.write_bytes(self.good["plain"])
        self.server.push(base, "vm:v1")
        disk = self.attach(self.server, "vm:v1", "--disk", self.tmp / "disk")
        for tag, pattern in (("v2", 2), ("v3", 3)):
            qemu.io(disk.uri, f"write -q -P {pattern} 2M 64k", fmt="raw")
            self.server.cairn("snapshot", self.tmp / "disk", f"vm:{tag}")
        disk.stop()
        layers = self.server.http.get("/v2/vm/manifests/v3").json()["layers"]
        entries = [(layer["digest"], layer["size"], layer["mediaType"]) for layer in layers]
        self.assertEqual(len(entries), 3)
        before = self.server.files()
        swapped = [entries[0], entries[2], entries[1]]
        answer = self.put_manifest("vm", "v4", manifest_of(swapped))
        self.assertIn(answer.status, (400, 409), answer.body)
        self.assertIn("parent", answer.error[1])
        self.assertIn(swapped[1][0], answer.error[1])
        self.assert_nothing_stored(before)

    def test_unknown_names(self):
        http = self.server.http
        for path, codes in (("/v2/nobody/manifests/v1", ("MANIFEST_UNKNOWN", "NAME_UNKNOWN")),
                            ("/v2/witness/manifests/v9", ("MANIFEST_UNKNOWN",)),
                            (f"/v2/witness/blobs/{digest_of(b'x')}", ("BLOB_UNKNOWN",)),
                            ("/v2/witness/blobs/uploads/nobody", ("BLOB_UPLOAD_UNKNOWN",)),
                            ("/v2/nobody/tags/list", ("NAME_UNKNOWN",)),
                            ("/v1/disks/nobody:v1", ("MANIFEST_UNKNOWN", "NAME_UNKNOWN")),
                            ("/v1/disks/nobody:v1/data", ("MANIFEST_UNKNOWN", "NAME_UNKNOWN"))):
            with self.subTest(path=path):
                self.assert_refused(http.get(path), (404,), *codes)

    def test_names_that_cannot_be(self):
        http = self.server.http
        for path in ("/v2/../../etc/passwd/manifests/v1", "/v2/UPPER/manifests/v1",
                     "/v2/%2e%2e/manifests/v1", "/v2/a/%2e%2e/%2e%2e/b/manifests/v1",
                     "/v2/a//b/manifests/v1", "/v1/disks/..:v1", "/v1/disks/a:..",
                     "/v1/disks/a@sha256:12", "/v2/a%00b/manifests/v1", "/v2/witness/manifests/" +
                     "x" * 200, "/v2/" + "a" * 300 + "/manifests/v1"):
            with self.subTest(path=path):
                answer = http.get(path)
                self.assertIn(answer.status, (400, 404), answer.body[:300])

    def test_ranges_past_the_end(self):
        size = len(self.witness)
        for path, length in (("/v1/disks/witness:v1/data", size),
                             (f"/v2/witness/blobs/{digest_of(self.good['plain'])}",
                              len(self.good["plain"]))):
            for asked in (f"bytes={length}-", f"bytes={length + 4096}-{length + 8191}",
                          f"bytes={U64}-", "bytes=-0"):
                answer = self.server.http.get(path, Range=asked)
                self.assertEqual(answer.status, 416, (path, asked))
                self.assertEqual(answer.headers["Content-Range"], f"bytes */{length}")
            answer = self.server.http.get(path, Range=f"bytes={length - 5}-{length + 100}")
            self.assertEqual((answer.status, len(answer.body)), (206, 5))
        for query in (f"?start={size + 1}", "?start=-1", "?start=x", f"?start=0&length={U64}0",
                      f"?start={U64}&length={U64}"):
            answer = self.server.http.get(f"/v1/disks/witness:v1/extents{query}")
            self.assertIn(answer.status, (400, 416), (query, answer.body[:200]))


class FullDisk(Case):
    """A store that has no room left: a small tmpfs where we may mount one, else a limit on the size
    of files."""

    def start_server(self):
        room = self.tmp / "room"
        room.mkdir()
        mounted = os.geteuid() == 0 and run(
            "mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", room, code=None).code == 0
        if mounted:
            self.addCleanup(run, "umount", "-l", room)
            return self.cairnd(store=room / "store")
        limit = ["bash", "-c", 'trap "" XFSZ; ulimit -f 8192; exec "$@"', "limited"]
        return self.cairnd(wrapper=limit)

    def test_full_disk(self):
        server = self.start_server()
        small = self.tmp / "small.raw"
        small.write_bytes(seeded("small").randbytes(MIB))
        server.push(small, "vm:v1")
        before = {name for name in server.files() if not name.startswith("uploads/")}
        data = seeded("large").randbytes(16 * MIB)
        answer = server.http.upload("vm", data, digest_of(data))
        self.assertEqual(answer.status, 507, answer.body)
        self.assertTrue(answer.error[1])
        large = self.tmp / "large.raw"
        large.write_bytes(data)
        result = server.cairn("push", large, "vm:v2", code=1)
        self.assertRegex(result.stderr.decode(), r"(?i)space|full|507")
        after = {name for name in server.files() if not name.startswith("uploads/")}
        self.assertEqual(after, before)
        self.assertEqual(server.http.get(f"/v2/vm/blobs/{digest_of(data)}").status, 404)
        self.assertEqual(server.http.get("/v2/vm/manifests/v2").status, 404)
        self.assertEqual(server.http.data("vm:v1"), small.read_bytes())


if __name__ == "__main__":
    main()
