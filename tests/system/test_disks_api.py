#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The disk API over HTTP, without the client: what it says of a disk equals what qemu-img says,
and what it cannot answer it refuses with a status and a clear text."""

import hashlib
import http.client
import json
import os
import urllib.parse

import qemu
from cairntest import KIB, MIB, Case, Parallel, first_difference, main, random_bytes, seeded

QCOW2 = "application/vnd.cairn.layer.v1.qcow2"
RAW = "application/vnd.cairn.layer.v1.raw"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SLICE = 32 * MIB


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def chain_id_of(digests):
    """As OCI defines ChainID, over layer digests."""
    chain_id = digests[0]
    for digest in digests[1:]:
        chain_id = digest_of(f"{chain_id} {digest}".encode())
    return chain_id


class DisksApi(Case):
    def setUp(self):
        super().setUp()
        self.server = self.cairnd()
        self.http = self.server.http

    # -- Disks -----------------------------------------------------------------------------------

    def put_blob(self, repo, data, digest):
        if self.http.request("HEAD", f"/v2/{repo}/blobs/{digest}").status == 200:
            return
        answer = self.http.upload(repo, data, digest)
        self.assertEqual(answer.status, 201, answer.body)

    def publish(self, ref, layers, annotations=None):
        """Put layers, (bytes, media type) base first, and their manifest; its digest."""
        repo, _, tag = ref.partition(":")
        descriptors = []
        for data, media_type in layers:
            self.put_blob(repo, data, digest_of(data))
            descriptors.append({"mediaType": media_type, "digest": digest_of(data),
                                "size": len(data)})
        self.put_blob(repo, b"{}", digest_of(b"{}"))
        body = json.dumps({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "artifactType": "application/vnd.cairn.disk.v1",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json",
                       "digest": digest_of(b"{}"), "size": 2},
            "layers": descriptors, **({"annotations": annotations} if annotations else {}),
        }).encode()
        answer = self.http.request("PUT", f"/v2/{repo}/manifests/{tag}", body,
                                   {"Content-Type": MANIFEST})
        self.assertEqual(answer.status, 201, answer.body)
        return digest_of(body)

    def make_chain(self):
        """Three layers of 100 MiB: data, zeros, compressed clusters, holes, and data that runs over
        layers; the paths, base first."""
        rng = seeded("disks api")
        base, middle, top = (self.tmp / name for name in ("base.raw", "middle", "top"))
        data = bytearray(70 * MIB + 1000)
        for off in range(0, 60 * MIB, 8 * MIB):
            data[off:off + 3 * MIB] = random_bytes(rng, 3 * MIB)
        data[-1000:] = b"\x77" * 1000
        base.write_bytes(data)
        qemu.img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, middle, "100M")
        qemu.io(middle, "write -P 1 1M 1M", "write -z 9M 1M", "write -P 2 80M 64k")
        qemu.io(middle, "write -c -P 3 33M 256k")
        qemu.img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k", "-F",
                 "qcow2", "-b", middle, top)
        qemu.io(top, "write -P 4 1M 4k", "write -P 5 64M 2M", "discard 80M 64k")
        for path in (middle, top):
            qemu.without_holes(path)
        return base, middle, top

    def publish_chain(self, ref="vm/disk:v1"):
        """The chain under a ref; what qemu-img reads from it."""
        self.files = self.make_chain()
        self.layers = [(path.read_bytes(), media_type)
                       for path, media_type in zip(self.files, (RAW, QCOW2, QCOW2))]
        self.manifest = self.publish(ref, self.layers, {"org.example.note": "three layers"})
        self.digests = [digest_of(data) for data, _ in self.layers]
        self.sizes = [len(data) for data, _ in self.layers]
        # QEMU's map knows bytes, ours sectors: for it, let the base end with its last sector.
        os.truncate(self.files[0], (self.sizes[0] + 511) // 512 * 512)
        return qemu.convert(self.files[-1], self.tmp / "oracle.raw")

    def refused(self, path, status, text, method="GET"):
        answer = self.http.request(method, path)
        self.assertEqual(answer.status, status, (path, answer.body))
        self.assertIn(text, answer.error[1], path)
        return answer

    # -- Info --------------------------------------------------------------------------------------

    def test_info(self):
        expected = self.publish_chain()
        info = self.http.get("/v1/disks/vm/disk:v1").json()
        self.assertEqual(info["manifest"], self.manifest)
        self.assertEqual(info["chainId"], chain_id_of(self.digests))
        self.assertEqual((info["virtualSize"], info["depth"]), (len(expected), 3))
        self.assertEqual(info["annotations"], {"org.example.note": "three layers"})
        base, middle, top = info["layers"]
        self.assertEqual([layer["digest"] for layer in info["layers"]], self.digests)
        self.assertEqual([layer["mediaType"] for layer in info["layers"]], [RAW, QCOW2, QCOW2])
        self.assertEqual([layer["size"] for layer in info["layers"]], self.sizes)
        self.assertEqual(base["virtualSize"], (70 * MIB + 1000 + 511) // 512 * 512)
        self.assertNotIn("clusterSize", base)
        self.assertEqual((middle["clusterSize"], top["clusterSize"]), (64 * KIB, 128 * KIB))
        health = info["health"]
        shown = qemu.extent_map(self.files[-1])
        self.assertEqual(health["bytesStored"], sum(self.sizes))
        self.assertEqual(health["dataBytes"], sum(e["length"] for e in shown if e["data"]))
        self.assertGreater(health["bytesHidden"], 0)
        self.assertGreater(health["extents"], 5)
        by_digest = self.http.get(f"/v1/disks/vm/disk@{self.manifest}").json()
        self.assertEqual(by_digest, info)

    # -- Data ---------------------------------------------------------------------------------------

    def test_data_in_ranges(self):
        expected = self.publish_chain()
        self.assertIsNone(first_difference(self.http.data("vm/disk:v1"), expected))
        path, size = "/v1/disks/vm/disk:v1/data", len(expected)
        ranges = [(0, 1), (0, 4096), (MIB - 1, 2), (MIB, 4096), (MIB + 4000, 5000),
                  (8 * MIB, 3 * MIB), (64 * MIB, 2 * MIB), (64 * MIB - 1, 2 * MIB + 2),
                  (33 * MIB + 5, 200 * KIB), (70 * MIB, 1000), (70 * MIB, 4096),
                  (70 * MIB + 999, 3), (SLICE - 100, 200), (size - 1, 1), (5, size - 9)]
        for first, length in ranges:
            answer = self.http.get(path, Range=f"bytes={first}-{first + length - 1}")
            self.assertEqual(answer.status, 206)
            self.assertEqual(answer.headers["Content-Range"],
                             f"bytes {first}-{first + length - 1}/{size}")
            self.assertEqual(answer.headers["Content-Length"], str(length))
            self.assertIsNone(first_difference(answer.body, expected[first:first + length]),
                              (first, length))
        self.assertEqual(self.http.get(path, Range="bytes=-700").body, expected[-700:])
        self.assertEqual(self.http.get(path, Range=f"bytes={size - 9}-").body, expected[-9:])

    def test_data_conditions(self):
        expected = self.publish_chain()
        path, etag = "/v1/disks/vm/disk:v1/data", f'"{chain_id_of(self.digests)}"'
        head = self.http.request("HEAD", path)
        self.assertEqual((head.status, head.body), (200, b""))
        self.assertEqual(head.headers["Content-Length"], str(len(expected)))
        self.assertEqual(head.headers["Accept-Ranges"], "bytes")
        self.assertEqual(head.headers["ETag"], etag)
        self.assertEqual(head.headers["Content-Type"], "application/octet-stream")
        same = self.http.get(path, If_None_Match=etag)
        self.assertEqual((same.status, same.body), (304, b""))
        self.assertEqual(same.headers["ETag"], etag)
        part = self.http.get(path, Range="bytes=0-9", If_Range=etag)
        self.assertEqual((part.status, len(part.body)), (206, 10))
        whole = self.http.get(path, Range="bytes=0-9", If_Range='"another"')
        self.assertEqual((whole.status, len(whole.body)), (200, len(expected)))
        past = self.http.get(path, Range=f"bytes={len(expected)}-")
        self.assertEqual(past.status, 416)
        self.assertEqual(past.headers["Content-Range"], f"bytes */{len(expected)}")

    def test_many_readers(self):
        expected = self.publish_chain()
        path, rng = "/v1/disks/vm/disk:v1/data", seeded("readers")

        def read(case):
            first, length = case
            answer = self.http.get(path, Range=f"bytes={first}-{first + length - 1}")
            assert answer.status == 206, answer.body[:300]
            difference = first_difference(answer.body, expected[first:first + length])
            assert difference is None, (first, length, difference)

        cases = [(rng.randrange(len(expected) - MIB), rng.choice((1, 512, 4096, 70000, MIB)))
                 for _ in range(400)]
        Parallel(8).each(read, cases)

    def test_next_range_is_of_what_the_tag_names_now(self):
        path = "/v1/disks/vm/disk:moving/data"
        for value in range(1, 40):
            content = bytes([value]) * MIB
            self.publish("vm/disk:moving", [(content, RAW)])
            for _ in range(2):  # looked up, and remembered
                answer = self.http.get(path, Range="bytes=4096-8191")
                self.assertEqual(answer.body, content[:4096])
        self.http.request("DELETE", "/v2/vm/disk/manifests/moving")
        self.assertEqual(self.http.get(path, Range="bytes=4096-8191").status, 404)

    # -- Extents --------------------------------------------------------------------------------------

    def test_extents_name_the_layer(self):
        self.publish_chain()
        extents = self.http.extents("vm/disk:v1")
        difference = qemu.first_extent_difference(extents, qemu.extent_map(self.files[-1]))
        self.assertIsNone(difference)
        for extent in extents:
            if extent["present"]:
                self.assertEqual(extent["layer"], self.digests[2 - extent["depth"]])
            else:
                self.assertNotIn("layer", extent)
        self.assertEqual(len(qemu.merge_extents(extents)), len(extents), "neighbours are merged")

    def test_extents_of_a_part(self):
        self.publish_chain()
        size = self.http.get("/v1/disks/vm/disk:v1").json()["virtualSize"]
        part = self.http.extents("vm/disk:v1", f"?start={MIB + 100}&length=5000")
        self.assertEqual([(e["start"], e["length"]) for e in part],
                         [(MIB + 100, 3996), (MIB + 4096, 1004)])
        self.assertEqual(self.http.extents("vm/disk:v1", f"?start={size}"), [])
        self.assertEqual(self.http.extents("vm/disk:v1", "?length=0"), [])
        last = self.http.extents("vm/disk:v1", f"?start={size - 1}&length={1 << 62}")
        self.assertEqual((last[-1]["start"], last[-1]["length"]), (size - 1, 1))

    def test_extents_that_are_many(self):
        """40,000 of them: more than is made at a time."""
        raw, layer = self.tmp / "many.raw", self.tmp / "many"
        raw.write_bytes((b"\x55" * 4096 + bytes(4096)) * 20000)
        qemu.img("convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", raw, layer)
        qemu.without_holes(layer)
        self.publish("many:v1", [(layer.read_bytes(), QCOW2)])
        extents = self.http.extents("many:v1")
        self.assertEqual(len(extents), 40000)
        self.assertIsNone(qemu.first_extent_difference(extents, qemu.extent_map(layer)))

    # -- Index ----------------------------------------------------------------------------------------

    def test_index(self):
        self.publish_chain()
        path = "/v1/disks/vm/disk:v1/index"
        whole = self.http.get(path)
        self.assertEqual(whole.status, 200)
        self.assertEqual(whole.headers["Content-Type"], "application/vnd.cairn.index.v1")
        self.assertEqual(whole.headers["ETag"], f'"{chain_id_of(self.digests)}"')
        self.assertEqual(self.http.get(path, If_None_Match=whole.headers["ETag"]).status, 304)
        self.assertEqual(self.http.get(path + "?slices=0-3").body, whole.body)
        self.assertEqual(self.http.get(path + "?slices=0-4000000000").body, whole.body)
        self.assertLess(len(self.http.get(path + "?slices=1-1").body), len(whole.body))
        for bad in ("", "1", "-1", "1-", "a-b", "2-1", "0-1x", "0-99999999999", "4-4", " 0-1"):
            self.refused(f"{path}?slices={urllib.parse.quote(bad)}", 400, "slices")

    def test_open_is_manifest_and_index(self):
        self.publish_chain()
        opening = self.http.get("/v1/disks/vm/disk:v1/open")
        self.assertEqual(opening.status, 200)
        self.assertEqual(opening.headers["Content-Type"], "application/vnd.cairn.opening.v1")
        manifest = self.http.get("/v2/vm/disk/manifests/v1")
        self.assertEqual(opening.headers["Docker-Content-Digest"],
                         manifest.headers["Docker-Content-Digest"])
        length = int.from_bytes(opening.body[:8], "little")
        self.assertEqual(opening.body[8:8 + length], manifest.body)
        self.assertEqual(opening.body[8 + length:], self.http.get("/v1/disks/vm/disk:v1/index").body)
        self.refused("/v1/disks/vm/disk:none/open", 404, "none")

    # -- Changes --------------------------------------------------------------------------------------

    def test_changes(self):
        new = self.publish_chain()
        self.publish("vm/disk:base", self.layers[:1])
        self.publish("vm/disk:middle", self.layers[:2])
        for since, old_file in (("base", self.files[0]), ("middle", self.files[1])):
            old = qemu.convert(old_file, self.tmp / "old.raw", "raw" if since == "base" else "qcow2")
            answer = self.http.get(f"/v1/disks/vm/disk:v1/changes?since=vm/disk:{since}").json()
            self.assertEqual(answer["chainId"], chain_id_of(self.digests))
            self.assertEqual(answer["virtualSize"], len(new))
            self.assertEqual(answer["since"]["virtualSize"], len(old))
            self.check_changes(answer["extents"], old, new)
        changed = self.http.get("/v1/disks/vm/disk:v1/changes?since=vm/disk:middle").json()
        self.assertLess(sum(e["length"] for e in changed["extents"]), 3 * MIB)

    def test_changes_backwards_and_to_itself(self):
        old = self.publish_chain()
        self.publish("vm/disk:base", self.layers[:1])
        new = qemu.convert(self.files[0], self.tmp / "new.raw", "raw")
        answer = self.http.get("/v1/disks/vm/disk:base/changes?since=vm/disk:v1").json()
        self.check_changes(answer["extents"], old, new)
        same = self.http.get(f"/v1/disks/vm/disk:v1/changes?since=vm/disk@{self.manifest}").json()
        self.assertEqual(same["extents"], [])

    def check_changes(self, extents, old, new):
        """What is listed, applied to the old disk, gives the new one."""
        size = max(len(old), len(new))
        patched, new = bytearray(old.ljust(size, b"\0")), new.ljust(size, b"\0")
        end = -1
        for extent in extents:
            first, length = extent["start"], extent["length"]
            self.assertGreaterEqual(first, end, "in order")
            self.assertNotEqual(extent["zero"], extent["data"])
            if extent["zero"]:
                self.assertEqual(new[first:first + length].count(0), length)
            patched[first:first + length] = new[first:first + length]
            end = first + length
        self.assertIsNone(first_difference(bytes(patched), new))

    # -- Names that move and go ----------------------------------------------------------------------------

    def test_a_tag_that_moves(self):
        self.publish_chain()
        before = self.http.request("HEAD", "/v1/disks/vm/disk:v1/data").headers["ETag"]
        self.publish("vm/disk:v1", self.layers[:2])
        after = self.http.request("HEAD", "/v1/disks/vm/disk:v1/data").headers["ETag"]
        self.assertNotEqual(before, after)
        self.assertEqual(after, f'"{chain_id_of(self.digests[:2])}"')

    def test_a_manifest_that_is_deleted(self):
        self.publish_chain()
        path = f"/v1/disks/vm/disk@{self.manifest}/data"
        self.assertEqual(self.http.get(path, Range="bytes=0-9").status, 206)
        deleted = self.http.request("DELETE", f"/v2/vm/disk/manifests/{self.manifest}")
        self.assertEqual(deleted.status, 202, deleted.body)
        for gone in (path, "/v1/disks/vm/disk:v1/data", "/v1/disks/vm/disk:v1"):
            self.assertEqual(self.refused(gone, 404, "vm/disk").error[0], "MANIFEST_UNKNOWN")

    def test_another_repository_does_not_see_it(self):
        self.publish_chain()
        self.assertEqual(self.http.get(f"/v1/disks/vm/disk@{self.manifest}").status, 200)
        self.refused(f"/v1/disks/other@{self.manifest}", 404, "other")

    # -- Refusals ----------------------------------------------------------------------------------------

    def test_refusals(self):
        self.publish_chain()
        disk = "/v1/disks/vm/disk:v1"
        self.refused("/v1/disks/vm/disk", 400, "repo:tag")
        self.refused("/v1/disks/vm/disk/data", 400, "repo:tag")
        self.refused("/v1/disks/VM:v1", 400, "VM")
        self.refused("/v1/disks/vm/disk@sha256:12", 400, "sha256:12")
        self.refused(f"{disk}/nothing", 404, "nothing")
        self.refused(f"{disk}/data/more", 404, "data/more")
        self.refused("/v1/disks/vm/disk:v9", 404, "v9")
        self.refused("/v1/disks/nobody:v1/extents", 404, "nobody")
        self.refused(f"{disk}/changes", 400, "since")
        self.refused(f"{disk}/changes?since=a:b:c", 400, "since")
        self.refused(f"{disk}/changes?since=vm/disk:v9", 404, "v9")
        for value in ("-1", "1x", "", "0x10", "18446744073709551616", "%201"):
            self.refused(f"{disk}/extents?start={value}", 400, "start")
            self.refused(f"{disk}/extents?length={value}", 400, "length")
        self.refused(f"{disk}/extents?start={101 * MIB}", 400, str(101 * MIB))
        for method in ("PUT", "POST", "DELETE", "PATCH"):
            answer = self.http.request(method, f"{disk}/data")
            self.assertEqual((answer.status, answer.headers["Allow"]), (405, "GET, HEAD"))

    def test_a_manifest_that_is_no_disk(self):
        self.put_blob("app", b"{}", digest_of(b"{}"))
        body = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST,
                           "config": {"mediaType": "application/vnd.oci.empty.v1+json",
                                      "digest": digest_of(b"{}"), "size": 2},
                           "layers": []}).encode()
        answer = self.http.request("PUT", "/v2/app/manifests/v1", body, {"Content-Type": MANIFEST})
        if answer.status == 201:
            self.refused("/v1/disks/app:v1", 400, "not a disk")
        else:
            self.assertEqual(answer.status, 400)

    def test_a_client_that_goes_away(self):
        """In the middle of a long answer: the server drops it and serves on."""
        expected = self.publish_chain()
        for path in ("data", "extents"):
            for _ in range(10):
                connection = http.client.HTTPConnection("127.0.0.1", self.server.port)
                connection.request("GET", f"/v1/disks/vm/disk:v1/{path}")
                connection.getresponse().read(10)
                connection.close()
        answer = self.http.get("/v1/disks/vm/disk:v1/data", Range="bytes=0-99")
        self.assertEqual(answer.body, expected[:100])

    def test_a_server_that_starts_anew(self):
        expected = self.publish_chain()
        self.server.stop()
        self.server = self.own(type(self.server)(self.folder("again"), store=self.server.store))
        self.http = self.server.http
        self.assertIsNone(first_difference(self.http.data("vm/disk:v1"), expected))


if __name__ == "__main__":
    main()
