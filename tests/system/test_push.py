#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What travels when a chain is pushed: only what the server lacks, also after an interruption."""

import hashlib
import json
import os
import pathlib
import signal

import qemu
from cairntest import (CAIRN, Case, KIB, MIB, location_path, main, random_bytes, run, seeded)
from proxy import Proxy

OVERHEAD = 64 * KIB  # of requests and manifests, generously


class Push(Case):
    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())
        self.server = self.cairnd()
        self.proxy = Proxy(self.server.port)
        self.addCleanup(self.proxy.close)

    def raw_file(self, name, length):
        path = self.tmp / name
        path.write_bytes(random_bytes(self.rng, length))
        return path

    def overlay(self, name, below, below_format="qcow2", data=64 * KIB):
        """A qcow2 layer with some random bytes of its own."""
        path = self.tmp / name
        qemu.img("create", "-q", "-f", "qcow2", "-b", below.name, "-F", below_format, path)
        source = self.raw_file("source", data)
        qemu.io(path, f"write -q -s {source} 0 {data}")
        return path

    def push(self, file, ref, **options):
        """Through the proxy; bytes that travelled to the server."""
        self.proxy.take()
        run(CAIRN, "push", file, ref, env={"CAIRN_SERVER": self.proxy.url}, **options)
        return self.proxy.take()[0]

    def test_only_missing_layers_travel(self):
        base = self.raw_file("base.raw", 24 * MIB)
        first = self.overlay("first.qcow2", base, "raw")
        second = self.overlay("second.qcow2", first)
        sizes = [path.stat().st_size for path in (base, first, second)]
        sent = self.push(first, "vm:v1")
        self.assertGreater(sent, sizes[0] + sizes[1])
        self.assertLess(sent, sizes[0] + sizes[1] + OVERHEAD)
        self.assertLess(self.push(first, "vm:again"), OVERHEAD)
        sent = self.push(second, "vm:v2")
        self.assertGreater(sent, sizes[2])
        self.assertLess(sent, sizes[2] + OVERHEAD)

    def test_session_that_is_turned_down_is_not_tried_for_ever(self):
        """`Range: 0-0` says that a session has no byte, and that it has one."""
        file = self.raw_file("disk.raw", 8 * MIB)
        digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
        started = self.server.http.request("POST", "/v2/vm/blobs/uploads/")
        session = location_path(started)
        self.server.http.request("PATCH", session, file.read_bytes()[:1],
                                 {"Content-Type": "application/octet-stream"})
        name = hashlib.sha256(f"{self.server.url}\nvm\n{digest}".encode()).hexdigest()
        remembered = pathlib.Path(os.environ["XDG_STATE_HOME"], "cairn", "uploads", name)
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(f"{session}\n")
        self.server.cairn("push", file, "vm:v1", code=1)
        self.assertFalse(remembered.exists())
        self.server.push(file, "vm:v1")

    def test_another_repository_mounts_what_the_server_has(self):
        base = self.raw_file("base.raw", 24 * MIB)
        top = self.overlay("top.qcow2", base, "raw")
        self.push(top, "one:v1")
        before = self.server.files()
        self.push(top, "two:v1")
        blobs = [name for name in self.server.files() if name.startswith("blobs/")]
        self.assertEqual(sorted(blobs), sorted(n for n in before if n.startswith("blobs/")))

    def test_last_line_is_the_ref_by_digest(self):
        base = self.raw_file("base.raw", MIB)
        printed = self.server.push(base, "vm:v1")
        body = self.server.http.get("/v2/vm/manifests/v1").body
        self.assertEqual(printed, "vm@sha256:" + hashlib.sha256(body).hexdigest())

    def test_interrupted_push_resumes(self):
        """Killed in mid-upload: the second push sends the rest only."""
        length, before_kill = 96 * MIB, 64 * MIB
        base = self.raw_file("base.raw", length)
        self.proxy.stall_after(before_kill)
        client = self.start([CAIRN, "push", base, "vm:v1"], "push",
                            env={"CAIRN_SERVER": self.proxy.url})
        self.assertTrue(self.proxy.reached.wait(120), client.describe())
        os.kill(client.pid, signal.SIGKILL)
        client.wait(code=-signal.SIGKILL)
        self.proxy.stall_after(None)
        self.proxy.cut()
        sent = self.push(base, "vm:v1")
        self.assertLess(sent, length - before_kill + 17 * MIB, "less than a chunk is sent twice")
        self.assertEqual(self.server.http.data("vm:v1"), base.read_bytes())

    def test_server_killed_in_mid_push(self):
        """The push fails with one clear line; nothing half pushed is visible after a restart."""
        base = self.raw_file("base.raw", 48 * MIB)
        self.proxy.stall_after(24 * MIB)
        client = self.start([CAIRN, "push", base, "vm:v1"], "push",
                            env={"CAIRN_SERVER": self.proxy.url})
        self.assertTrue(self.proxy.reached.wait(120), client.describe())
        self.server.kill()
        self.proxy.close()
        client.wait(code=1, timeout=120)
        self.assertIn("cairn: ", client.text())
        server = self.cairnd("server2", store=self.server.store)
        self.assertEqual(server.http.get("/v2/vm/manifests/v1").status, 404)
        server.push(base, "vm:v1")
        self.assertEqual(server.http.data("vm:v1"), base.read_bytes())

    def test_json_backing_name_is_refused(self):
        """The user's own files too are only opened by plain names."""
        self.raw_file("base.raw", MIB)
        for number, name in enumerate(("json:{\"driver\":\"null-co\"}", "nbd://127.0.0.1/")):
            top = self.tmp / f"top{number}.qcow2"
            qemu.img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", top, MIB)
            said = self.server.cairn("push", top, "vm:v1", code=1).stderr.decode()
            self.assertIn(json.dumps(name)[1:5], said)
            self.assertIn(top.name, said)


if __name__ == "__main__":
    main()
