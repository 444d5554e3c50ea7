#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`cairn verify`, `cairn scrub` and `cairn rm` as an operator uses them: what is found, what is printed,
exit codes."""

import json
import re
import signal

import qemu
from cairntest import CAIRN, Case, KIB, MIB, main, random_bytes, seeded, wait_for
from test_scrub import damage


class Disks(Case):
    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())
        self.server = self.cairnd()

    def chain(self, ref="vm:v1"):
        """A raw base below two qcow2 layers, pushed; their digests, base first."""
        base, middle, top = (self.tmp / name for name in ("base.raw", "middle.qcow2", "top.qcow2"))
        base.write_bytes(random_bytes(self.rng, 2 * MIB))
        qemu.img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", middle)
        qemu.io(middle, "write -q -P 1 1M 512k")
        qemu.img("create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
        qemu.io(top, "write -q -P 3 64k 64k")
        self.server.push(top, ref)
        return [layer["digest"] for layer in self.server.http.get(f"/v1/disks/{ref}").json()["layers"]]

    def blob_path(self, digest):
        hexa = digest.removeprefix("sha256:")
        return self.server.store / "blobs" / "sha256" / hexa[:2] / hexa

    def verify(self, *arguments, code=0):
        result = self.server.cairn("verify", "--json", *arguments, code=code)
        return json.loads(result.stdout)


class Verify(Disks):
    def test_good_disk(self):
        layers = self.chain()
        for arguments in ((), ("--scrub",)):
            said = self.verify(*arguments, "vm:v1")
            self.assertEqual((said["state"], said["problems"], said["depth"]), ("good", [], 3))
            self.assertEqual(said["bytes"],
                             sum(self.blob_path(layer).stat().st_size for layer in layers))
        self.assertRegex(self.server.cairn("verify", "vm:v1").last_line, r"^vm:v1: good, 3 layers, ")

    def test_each_kind_of_damage_is_named(self):
        for how in ("flip", "cut", "grow"):
            for arguments in ((), ("--scrub",)):
                with self.subTest(how=how, arguments=arguments):
                    tag = f"vm:{how}{len(arguments)}"
                    layers = self.chain(tag)
                    hit = layers[self.rng.randrange(3)]
                    damage(self.blob_path(hit), how, self.rng)
                    said = self.verify(*arguments, tag, code=1)
                    self.assertEqual(said["state"], "damaged")
                    # What is wrong with the chain follows from what is wrong with a layer.
                    self.assertEqual({p["layer"] for p in said["problems"] if "layer" in p}, {hit})
                    self.server.cairn("scrub", "--rate", "0", code=None)
                    printed = self.server.cairn("verify", tag, code=1).stdout.decode()
                    self.assertIn(hit, printed)
                    self.assertIn("damaged", printed)

    def test_lost_layer(self):
        layers = self.chain()
        self.blob_path(layers[1]).unlink()
        self.assertIn(layers[1], {p.get("layer") for p in self.verify("vm:v1", code=1)["problems"]})

    def test_damaged_manifest_and_unknown_disk_are_failures(self):
        self.chain()
        damage(next((self.server.store / "repos/vm/_manifests").iterdir()), "flip", self.rng)
        self.assertIn(b"manifest", self.server.cairn("verify", "vm:v1", code=1).stderr)
        self.assertIn(b"nothing", self.server.cairn("verify", "vm:nothing", code=1).stderr)
        self.server.cairn("verify", "not a ref", code=2)

    def test_folder(self):
        self.chain()
        disk = self.attach(self.server, "vm:v1", "--disk", self.tmp / "disk")
        qemu.io(f'json:{{"driver":"raw","file":{{"driver":"nbd","server":{{"type":"unix",'
                f'"path":"{disk.socket}"}}}}}}', "write -q -P 9 0 64k")
        running = self.verify(self.tmp / "disk")
        self.assertEqual((running["state"], [s["layer"] for s in running["skipped"]]),
                         ("good", ["active.qcow2"]))
        disk.stop()
        stopped = self.verify(self.tmp / "disk")
        self.assertEqual((stopped["state"], "skipped" in stopped), ("good", False))
        active = self.tmp / "disk" / "active.qcow2"
        with open(active, "r+b") as file:
            file.seek(40)  # where the L1 table is
            file.write((1 << 40).to_bytes(8, "big"))
        said = self.verify(self.tmp / "disk", code=1)
        self.assertEqual({p["layer"] for p in said["problems"]}, {"active.qcow2"})


class Scrub(Disks):
    def test_exit_code_and_what_is_printed(self):
        layers = self.chain()
        clean = self.server.cairn("scrub", "--rate", "0")
        self.assertRegex(clean.last_line, r"^done: 4 blobs, .* 1 manifests, 3 index objects; 0 damaged$")
        damage(self.blob_path(layers[1]), "flip", self.rng)
        found = self.server.cairn("scrub", "--rate", "100M", code=1).stdout.decode()
        self.assertRegex(found, rf"(?m)^damaged blob {layers[1]}: its \d+ bytes have the digest sha256:")
        self.assertRegex(found, r"(?m)^    vm:v1$")
        said = json.loads(self.server.cairn("scrub", "--json", code=1).stdout)
        self.assertEqual([item["digest"] for item in said["result"]["damaged"]], [layers[1]])
        self.server.push(self.tmp / "top.qcow2", "vm:v1")
        self.server.cairn("scrub", "--quiet")

    def test_not_waited_for_then_cancelled(self):
        self.chain()
        job = self.server.cairn("scrub", "--rate", "64K", "--no-wait").last_line
        self.assertRegex(job, r"^scrub-[0-9-]+-[0-9a-f]{4}$")
        follower = self.start([CAIRN, "scrub"], "follower", env={"CAIRN_SERVER": self.server.url})
        wait_for(lambda: job in follower.text(), "the follower to name the job")
        self.server.cairn("scrub", "--cancel")
        follower.wait(code=1)
        self.assertIn("cancelled", follower.text())
        self.assertIn(b"no scrub", self.server.cairn("scrub", "--cancel", code=1).stderr)

    def test_interrupting_the_command_leaves_the_job(self):
        self.chain()
        command = self.start([CAIRN, "scrub", "--rate", "64K"], "scrub",
                             env={"CAIRN_SERVER": self.server.url})
        jobs = lambda: self.server.http.get("/v1/jobs").json()["jobs"]
        wait_for(lambda: jobs() and jobs()[0]["progress"]["phase"] == "blobs", "the job to run")
        command.popen.send_signal(signal.SIGINT)
        command.wait(code=1)
        self.assertIn("goes on in the service", command.text())
        self.assertEqual(jobs()[0]["state"], "running")

    def test_usage(self):
        for arguments in (("--rate", "fast"), ("vm:v1",), ("--cancel", "--no-wait")):
            self.server.cairn("scrub", *arguments, code=2)


class Remove(Disks):
    def tags(self, repo="vm"):
        answer = self.server.http.get(f"/v2/{repo}/tags/list")
        return set(answer.json()["tags"]) if answer.status == 200 else set()

    def by_digest(self, ref):
        return ref.partition(":")[0] + "@" + self.server.http.get(f"/v1/disks/{ref}").json()["manifest"]

    def test_tags_several_at_once(self):
        self.chain()
        for tag in ("v2", "v3"):
            self.server.cairn("tag", "vm:v1", f"vm:{tag}")
        self.assertEqual(self.server.cairn("rm", "vm:v1", "vm:v3").stdout, b"")
        self.assertEqual(self.tags(), {"v2"})

    def test_the_others_go_also_if_one_cannot(self):
        self.chain()
        self.server.cairn("tag", "vm:v1", "vm:v2")
        result = self.server.cairn("rm", "vm:v1", "vm:nothing", "vm:v2", code=1)
        self.assertIn(b"nothing", result.stderr)
        self.assertEqual(self.tags(), set())
        self.server.cairn("rm", "vm:v1", "not a ref", code=2)

    def test_manifest_with_tags_is_kept_unless_forced(self):
        self.chain()
        self.server.cairn("tag", "vm:v1", "vm:v2")
        manifest = self.by_digest("vm:v1")
        result = self.server.cairn("rm", manifest, code=1)
        for word in (b"v1, v2", b"--force"):
            self.assertIn(word, result.stderr)
        self.assertEqual(self.tags(), {"v1", "v2"})
        dry = self.server.cairn("rm", "--dry-run", "--force", manifest).stdout.decode()
        self.assertEqual(dry.splitlines(), [manifest, "vm:v1", "vm:v2"])
        self.assertEqual(self.tags(), {"v1", "v2"})
        self.server.cairn("rm", "--force", manifest)
        self.assertEqual(self.server.http.get(f"/v1/disks/{manifest}").status, 404)
        self.assertEqual(self.tags(), set())

    def test_manifest_without_tags_goes(self):
        self.chain()
        manifest = self.by_digest("vm:v1")
        said = json.loads(self.server.cairn("rm", "--json", "vm:v1", manifest).stdout)
        self.assertEqual([(r["ref"], r["tags"]) for r in said], [("vm:v1", ["v1"]), (manifest, [])])
        self.assertEqual(self.server.http.get(f"/v1/disks/{manifest}").status, 404)

    def test_tag_of_a_damaged_manifest_can_go(self):
        self.chain()
        damage(next((self.server.store / "repos/vm/_manifests").iterdir()), "flip", self.rng)
        self.server.cairn("rm", "vm:v1")
        self.assertEqual(self.tags(), set())

    def collect(self):
        """A garbage collection that spares nothing for its age."""
        answer = self.server.http.request("POST", "/v1/gc", '{"grace": 0}')
        self.assertEqual(answer.status, 202, answer.body)
        path = f"/v1/jobs/{answer.json()['id']}"
        job = wait_for(lambda: next((j for j in [self.server.http.get(path).json()]
                                     if j["state"] != "running"), None), "the collection to end")
        self.assertEqual(job["state"], "done", job)

    def test_chain_that_shares_layers_is_not_harmed(self):
        top_layer = self.chain()[-1]
        below = self.tmp / "middle.qcow2"
        self.server.push(below, "vm:below")
        right = {ref: qemu.convert(self.tmp / f"{name}.qcow2", self.tmp / "raw")
                 for ref, name in (("vm:v1", "top"), ("vm:below", "middle"))}
        self.server.cairn("rm", "--force", self.by_digest("vm:below"))
        self.collect()
        self.verify("vm:v1")
        self.assertEqual(self.server.http.data("vm:v1"), right["vm:v1"])
        self.server.push(below, "vm:below")
        self.server.cairn("rm", "--force", self.by_digest("vm:v1"))
        self.collect()
        self.assertEqual(self.server.http.data("vm:below"), right["vm:below"])
        self.verify("vm:below")
        self.assertFalse(self.blob_path(top_layer).exists())  # nobody needs it


if __name__ == "__main__":
    main()
