#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Scrubbing: every damaged blob is found, named with its tags and taken out of service, everything else
is served on; a push heals; interrupted scrubs go on."""

import hashlib
import json
import time

import qemu
from cairntest import Case, KIB, MIB, location_path, main, random_bytes, seeded, wait_for
from nbdclient import NbdClient

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
RAW = "application/vnd.cairn.layer.v1.raw"
EMPTY = b"{}"
BOUND = 20  # seconds until another server serves nothing damaged any more


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def damage(path, how, rng):
    """One bit flipped, or some bytes at the end gone or too many."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        if how == "flip":
            off = rng.randrange(size)
            file.seek(off)
            byte = file.read(1)[0]
            file.seek(off)
            file.write(bytes([byte ^ 1 << rng.randrange(8)]))
        elif how == "cut":
            file.truncate(rng.randrange(size))
        else:
            file.seek(size)
            file.write(rng.randbytes(rng.randrange(1, 100)))


class Scrub(Case):
    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())
        self.server = self.cairnd()

    # -- Blobs and disks --------------------------------------------------------------------------

    def blob_path(self, digest):
        hexa = digest.removeprefix("sha256:")
        return self.server.store / "blobs" / "sha256" / hexa[:2] / hexa

    def put_disk(self, tag, data):
        """A disk of one raw layer; the layer's digest."""
        http, digest = self.server.http, digest_of(data)
        for body in (EMPTY, data) if not self.blob_path(digest_of(EMPTY)).exists() else (data,):
            self.assertEqual(http.upload("vm", body, digest_of(body)).status, 201)
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "artifactType": "application/vnd.cairn.disk.v1",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(EMPTY),
                       "size": len(EMPTY)},
            "layers": [{"mediaType": RAW, "digest": digest, "size": len(data)}]}).encode()
        answer = http.request("PUT", f"/v2/vm/manifests/{tag}", manifest,
                              {"Content-Type": MANIFEST_TYPE})
        self.assertEqual(answer.status, 201, answer.body)
        return digest

    def chain_of_three(self):
        """Pushed as vm:v1; the image and the digests of its layers, base first."""
        base, middle, top = (self.tmp / name for name in ("base.raw", "middle.qcow2", "top.qcow2"))
        base.write_bytes(random_bytes(self.rng, 4 * MIB))
        qemu.img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", middle)
        qemu.io(middle, "write -q -P 1 1M 512k", "write -q -P 2 3M 64k")
        qemu.img("create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
        qemu.io(top, "write -q -P 3 1M 64k", "write -q -P 4 2M 128k")
        self.server.push(top, "vm:v1")
        info = self.server.http.get("/v1/disks/vm:v1").json()
        return top, [layer["digest"] for layer in info["layers"]]

    # -- Jobs -------------------------------------------------------------------------------------

    def start_scrub(self, server=None, status=202, **options):
        answer = (server or self.server).http.request("POST", "/v1/scrub", json.dumps(options))
        self.assertEqual(answer.status, status, answer.body)
        return location_path(answer)

    def job(self, path, server=None):
        return (server or self.server).http.get(path).json()

    def ended(self, path, server=None):
        """The job's record when it has ended."""
        def look():
            record = self.job(path, server)
            return record if record["state"] not in ("running", "interrupted") else None
        return wait_for(look, f"{path} to end", 120)

    def scrub(self, server=None, **options):
        """The result of a scrub without limits."""
        record = self.ended(self.start_scrub(server, **{"rate": 0, **options}), server)
        self.assertEqual(record["state"], "done", record)
        return record["result"]

    def damaged(self, result):
        """{digest: tags}"""
        return {item["digest"]: item["tags"] for item in result["damaged"]}

    def nr_blobs(self):
        return sum(1 for path in (self.server.store / "blobs").rglob("*") if path.is_file())

    # -- What is found ----------------------------------------------------------------------------

    def test_100_of_100_damaged_blobs_are_found_and_the_rest_is_served(self):
        disks = [self.rng.randbytes(512 * self.rng.randrange(1, 64)) for _ in range(110)]
        digests = [self.put_disk(f"t{i}", data) for i, data in enumerate(disks)]
        hit = self.rng.sample(range(110), 100)
        for nr, i in enumerate(hit):
            damage(self.blob_path(digests[i]), "flip" if nr < 60 else "cut" if nr < 90 else "grow",
                   self.rng)
        result = self.scrub()
        self.assertEqual(self.damaged(result), {digests[i]: [f"vm:t{i}"] for i in hit})
        self.assertEqual(result["blobs"], 111)  # and the empty configuration
        for i, data in enumerate(disks):
            answer = self.server.http.get(f"/v1/disks/vm:t{i}/data") if i not in hit else None
            if answer:
                self.assertEqual((answer.status, answer.body), (200, data))
                self.assertEqual(self.server.http.get(f"/v2/vm/blobs/{digests[i]}").body, data)
            else:
                self.assert_refused(digests[i])
        wait_for(lambda: self.server.metrics()["cairn_scrub_damaged_blobs"] == 100, "the gauge")
        self.assertEqual(self.damaged(self.scrub()), self.damaged(result))  # still so

    def assert_refused(self, digest, server=None):
        http = (server or self.server).http
        answer = http.get(f"/v2/vm/blobs/{digest}")
        self.assertEqual(answer.status, 404)
        self.assertEqual(answer.error[0], "BLOB_UNKNOWN")
        self.assertIn(digest, answer.error[1])
        self.assertIn("damaged", answer.error[1])
        self.assertEqual(http.request("HEAD", f"/v2/vm/blobs/{digest}").status, 404)

    def test_damage_is_logged_with_tags_and_kept_for_the_operator(self):
        digest = self.put_disk("broken", b"x" * 4096)
        damage(self.blob_path(digest), "flip", self.rng)
        bad = self.blob_path(digest).read_bytes()
        self.scrub()
        lines = [line for line in self.server.text().splitlines() if digest in line]
        for words in (("event=damaged ", "tags=1"), ("event=damaged-tag ", "tag=vm:broken ")):
            self.assertTrue(any(all(word in line for word in words) for line in lines), lines)
        aside = self.server.store / "quarantine" / (digest.removeprefix("sha256:") + ".blob")
        self.assertEqual(aside.read_bytes(), bad)

    def test_untouched_store_has_no_damage(self):
        self.chain_of_three()
        result = self.scrub()
        self.assertEqual((result["damaged"], result["blobs"], result["manifests"]),
                         ([], self.nr_blobs(), 1))
        self.assertEqual(result["indexObjects"], 3)
        self.assertNotIn("dropped", result)
        name = "cairn_scrub_last_success_timestamp_seconds"
        wait_for(lambda: abs(self.server.metrics()[name] - time.time()) < 600, name)

    def test_lost_blob_is_named(self):
        _, layers = self.chain_of_three()
        self.blob_path(layers[1]).unlink()
        for _ in range(2):
            found = self.scrub()["damaged"]
            self.assertEqual([(item["digest"], item["problem"], item["tags"]) for item in found],
                             [(layers[1], "the store has lost it", ["vm:v1"])])

    # -- A chain with a damaged layer ---------------------------------------------------------------

    def layer_of_each_piece(self):
        """(offset, layer or None) of each 64 KiB of vm:v1."""
        extents = self.server.http.extents("vm:v1")
        return [(off, next(e.get("layer") for e in extents
                           if e["start"] <= off < e["start"] + e["length"]))
                for off in range(0, 4 * MIB, 64 * KIB)]

    def test_damaged_layer_fails_its_extents_only(self):
        top, layers = self.chain_of_three()
        right = qemu.convert(top, self.tmp / "right.raw")
        damage(self.blob_path(layers[1]), "flip", self.rng)
        self.assertEqual(self.damaged(self.scrub()), {layers[1]: ["vm:v1"]})
        disk = self.attach(self.server, "vm:v1", "--read-only")
        client = NbdClient(disk.socket)
        nr_failed = 0
        for off, layer in self.layer_of_each_piece():
            answer = self.server.http.get(f"/v1/disks/vm:v1/data",
                                          Range=f"bytes={off}-{off + 64 * KIB - 1}")
            try:
                over_nbd = client.read(off, 64 * KIB)
            except OSError:
                over_nbd = None
            if layer == layers[1]:
                nr_failed += 1
                self.assertIsNone(over_nbd, f"read at {off}")
                self.assertEqual(answer.status, 500)
                self.assertIn(layer, answer.error[1])
            else:
                self.assertTrue(over_nbd == answer.body == right[off:off + 64 * KIB], off)
        self.assertEqual(nr_failed, 8)  # 576 KiB, less what the top hides
        client.close()
        disk.stop()
        self.assertIn(layers[1], disk.text())

    def test_push_heals(self):
        top, layers = self.chain_of_three()
        right = qemu.convert(top, self.tmp / "right.raw")
        for layer in layers[1:]:
            damage(self.blob_path(layer), "cut", self.rng)
        self.assertEqual(set(self.damaged(self.scrub())), set(layers[1:]))
        self.server.push(top, "vm:v1")
        self.assertEqual(self.server.http.data("vm:v1"), right)
        self.assertEqual(self.scrub()["damaged"], [])
        wait_for(lambda: self.server.metrics()["cairn_scrub_damaged_blobs"] == 0, "the gauge")

    def test_blob_that_turns_out_right_is_put_back(self):
        data = self.rng.randbytes(8192)
        digest = self.put_disk("t", data)
        damage(self.blob_path(digest), "flip", self.rng)
        self.scrub()
        aside = self.server.store / "quarantine" / (digest.removeprefix("sha256:") + ".blob")
        aside.write_bytes(data)
        result = self.scrub()
        self.assertEqual((result["damaged"], result["putBack"]), ([], [digest]))
        self.assertEqual(self.server.http.data("vm:t"), data)

    # -- What is not a blob -------------------------------------------------------------------------

    def test_damaged_manifest_is_named_and_healed_by_a_push(self):
        top, _ = self.chain_of_three()
        path = next((self.server.store / "repos" / "vm" / "_manifests").iterdir())
        damage(path, "flip", self.rng)
        found = self.scrub()["damaged"]
        self.assertEqual([(item["kind"], item["digest"], item["tags"]) for item in found],
                         [("manifest", "sha256:" + path.name, ["vm:v1"])])
        self.assertEqual(self.server.http.get("/v2/vm/manifests/v1").status, 500)
        self.server.push(top, "vm:v1")
        self.assertEqual(self.scrub()["damaged"], [])
        self.assertEqual(self.server.http.get("/v2/vm/manifests/v1").status, 200)

    def test_damaged_index_objects_are_dropped_and_built_again(self):
        top, _ = self.chain_of_three()
        right = qemu.convert(top, self.tmp / "right.raw")
        self.server.stop()  # nothing is in memory
        for path in (self.server.store / "index").glob("*/*"):
            damage(path, self.rng.choice(["flip", "cut"]), self.rng)
        self.server = self.cairnd()
        result = self.scrub()
        self.assertEqual((len(result["dropped"]), result["damaged"]), (3, []))
        self.assertEqual(self.server.http.data("vm:v1"), right)
        self.assertEqual(self.scrub()["indexObjects"], 3)

    # -- One disk -----------------------------------------------------------------------------------

    def test_scrub_of_one_disk_reads_its_layers_only(self):
        digests = [self.put_disk(tag, self.rng.randbytes(4096)) for tag in ("a", "b", "c")]
        for digest in digests[:2]:
            damage(self.blob_path(digest), "flip", self.rng)
        result = self.scrub(ref="vm:a")
        self.assertEqual((self.damaged(result), result["blobs"]), ({digests[0]: ["vm:a"]}, 1))
        self.assertEqual(self.damaged(self.scrub(ref="vm:a")), {digests[0]: ["vm:a"]})
        self.assertEqual(self.scrub(ref="vm:c")["damaged"], [])
        self.blob_path(digests[2]).unlink()
        self.assertIn("lost", self.scrub(ref="vm:c")["damaged"][0]["problem"])

    def test_bad_options_are_refused(self):
        for body, word in (('{"rate":-1}', "rate"), ('{"rate":"1"}', "rate"), ('{"ref":"a@b"}', "ref"),
                           ('{"ref":5}', "ref"), ('{"speed":1}', "speed"), ("[]", "JSON object"),
                           ("{", "JSON object")):
            answer = self.server.http.request("POST", "/v1/scrub", body)
            self.assertEqual(answer.status, 400, body)
            self.assertIn(word, answer.error[1])
        record = self.ended(self.start_scrub(ref="no/such:disk"))
        self.assertEqual(record["state"], "failed")
        self.assertIn("no/such", record["error"])

    # -- Rate, cancelling, going on ---------------------------------------------------------------

    def test_rate_bounds_what_is_read(self):
        self.put_disk("t", self.rng.randbytes(2 * MIB))
        began = time.monotonic()
        record = self.ended(self.start_scrub(rate=MIB))
        # What may be read at once is made up of one chunk and a second's worth.
        self.assertGreater(time.monotonic() - began, 0.5)
        self.assertEqual(record["options"], {"rate": MIB})

    def test_only_one_runs_and_it_can_be_cancelled(self):
        self.put_disk("t", self.rng.randbytes(4 * MIB))
        path = self.start_scrub(rate=64 * KIB)
        self.assertEqual(self.start_scrub(status=409), path)
        self.assertEqual(self.server.http.request("DELETE", path).status, 202)
        self.assertEqual(self.ended(path)["state"], "cancelled")
        self.assertEqual(self.server.http.request("DELETE", path).status, 409)
        listed = self.server.http.get("/v1/jobs?kind=scrub").json()["jobs"]
        self.assertEqual([(job["kind"], job["state"]) for job in listed], [("scrub", "cancelled")])

    def slow_scrub(self):
        """One that takes a minute, when it has read some blobs; they are counted in its record."""
        for i in range(120):
            self.put_disk(f"t{i}", self.rng.randbytes(16 * KIB))
        path = self.start_scrub(rate=32 * KIB)
        wait_for(lambda: self.nr_read(self.job(path)) >= 4, "some blobs", 120)
        return path

    def nr_read(self, record):
        return record.get("result", {}).get("blobs", 0)

    def check_gone_on(self, path, server):
        """The server takes the job up and goes on where it was; ends it."""
        wait_for(lambda: self.job(path, server)["restarts"] == 1, "the job to be taken up", 120)
        wait_for(lambda: self.job(path, server)["progress"]["phase"] == "blobs", "blobs", 120)
        wait_for(lambda: server.metrics()["cairn_scrub_blobs_total"] >= 1, "a blob", 120)
        self.assertEqual(server.http.request("DELETE", path).status, 202)
        record = self.ended(path, server)
        self.assertEqual(record["state"], "cancelled")
        read_here = server.metrics()["cairn_scrub_blobs_total"]
        self.assertLessEqual(read_here, self.nr_read(record) - 4)

    def test_killed_server_goes_on_where_it_stopped(self):
        path = self.slow_scrub()
        self.server.kill()
        self.server = self.cairnd()
        self.check_gone_on(path, self.server)

    def test_another_server_goes_on(self):
        other = self.cairnd("other", store=self.server.store)
        path = self.slow_scrub()
        self.server.stop()
        self.check_gone_on(path, other)

    # -- Two servers --------------------------------------------------------------------------------

    def test_other_servers_stop_serving_what_is_damaged(self):
        other = self.cairnd("other", store=self.server.store)
        image, raw = self.tmp / "c.qcow2", self.tmp / "c.raw"
        raw.write_bytes(random_bytes(self.rng, 256 * KIB) + bytes(256 * KIB))
        qemu.img("convert", "-q", "-c", "-O", "qcow2", raw, image)
        self.server.push(image, "vm:c")
        layer = other.http.get("/v1/disks/vm:c").json()["layers"][0]["digest"]
        self.assertEqual(other.http.data("vm:c"), raw.read_bytes())  # opened, decompressed, kept
        self.assertEqual(other.http.get(f"/v2/vm/blobs/{layer}").status, 200)
        damage(self.blob_path(layer), "flip", self.rng)
        self.assertEqual(self.damaged(self.scrub()), {layer: ["vm:c"]})
        self.assert_refused(layer)
        wait_for(lambda: other.http.get("/v1/disks/vm:c/data", Range="bytes=0-4095").status == 500,
                 "the other server to refuse the disk", 3 * BOUND)
        wait_for(lambda: other.http.get(f"/v2/vm/blobs/{layer}").status == 404,
                 "the other server to refuse the blob", 3 * BOUND)
        other.push(image, "vm:c")
        self.assertEqual(self.server.http.data("vm:c"), raw.read_bytes())
        self.assertEqual(other.http.data("vm:c"), raw.read_bytes())


if __name__ == "__main__":
    main()
