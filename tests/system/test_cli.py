#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The cairn command as a user and a script see it: exit codes, one clear line on stderr, JSON that
parses, help."""

import json
import re

import qemu
from cairntest import CAIRN, CAIRND, Case, MIB, main, random_bytes, run, seeded, wait_for

COMMANDS = ("push", "pull", "attach", "snapshot", "info", "log", "map", "ls", "diff", "tag", "rm",
            "verify", "scrub", "image")


class CommandLine(Case):
    def make_image(self):
        """A chain of two layers."""
        base, top = self.tmp / "base.raw", self.tmp / "top.qcow2"
        base.write_bytes(random_bytes(seeded("cli"), MIB))
        qemu.img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", top)
        qemu.io(top, "write -q -P 1 64k 4k")
        return top

    def assert_one_clear_line(self, result, *words):
        lines = result.stderr.decode().strip().splitlines()
        self.assertEqual(len(lines), 1, result.describe())
        self.assertTrue(lines[0].startswith("cairn: "), lines[0])
        for word in words:
            self.assertIn(str(word), lines[0])

    # -- Usage ------------------------------------------------------------------------------------

    def test_help(self):
        overview = run(CAIRN, "--help").stdout.decode()
        for command in COMMANDS:
            self.assertRegex(overview, rf"(?m)^ +{command}\b")
            said = run(CAIRN, command, "--help").stdout.decode()
            self.assertRegex(said, rf"(?i)usage: cairn {command}")

    def test_version(self):
        for program in (CAIRN, CAIRND):
            self.assertRegex(run(program, "--version").stdout.decode(), r"\d+\.\d+\.\d+")

    def test_usage_errors_exit_with_2(self):
        for arguments in ((), ("frobnicate",), ("push",), ("push", "a", "b", "c"),
                          ("info", "--frobnicate", "vm:v1"), ("push", "file", "Not:A:Ref"),
                          ("image",), ("image", "frobnicate", "x")):
            with self.subTest(arguments=arguments):
                result = run(CAIRN, *arguments, code=2, env={"CAIRN_SERVER": "http://127.0.0.1:1"})
                self.assertEqual(result.stdout, b"")
                self.assertTrue(result.stderr.strip())

    def test_cairnd_rejects_what_it_does_not_know(self):
        for arguments in (("--frobnicate",), ("--listen", "nowhere"), ("--store", "ftp:x"),
                          ("--workers", "1x"), ("--workers", "0")):
            with self.subTest(arguments=arguments):
                result = run(CAIRND, "--store", f"fs:{self.tmp}/s", "--listen", "127.0.0.1:0",
                             *arguments, code=None)
                self.assertIn(result.code, (1, 2), result.describe())
                self.assertIn(arguments[-1].strip("-").encode(), result.stderr)

    # -- Failures ---------------------------------------------------------------------------------

    def test_server_that_is_not_there(self):
        result = run(CAIRN, "info", "vm:v1", code=1, env={"CAIRN_SERVER": "http://127.0.0.1:1"})
        self.assert_one_clear_line(result, "127.0.0.1:1")

    def test_failures_exit_with_1(self):
        server = self.cairnd()
        missing = self.tmp / "missing.qcow2"
        for arguments, word in ((("info", "nobody:v1"), "nobody"),
                                (("log", "nobody:v1"), "nobody"),
                                (("pull", "nobody:v1", self.tmp / "out"), "nobody"),
                                (("push", missing, "vm:v1"), missing),
                                (("snapshot", self.tmp / "nodisk", "vm:v2"), "nodisk"),
                                (("image", "info", missing), missing)):
            with self.subTest(arguments=arguments):
                self.assert_one_clear_line(server.cairn(*arguments, code=1), word)

    def test_pull_does_not_overwrite(self):
        server = self.cairnd()
        server.push(self.make_image(), "vm:v1")
        out = self.tmp / "mine"
        out.write_text("precious")
        self.assert_one_clear_line(server.cairn("pull", "vm:v1", out, code=1), out)
        self.assertEqual(out.read_text(), "precious")

    # -- Facts ------------------------------------------------------------------------------------

    def test_every_fact_as_json(self):
        server = self.cairnd()
        top = self.make_image()
        by_digest = server.push(top, "vm:v1")
        server.cairn("tag", "vm:v1", "vm:v2")
        info = server.cairn("info", "--json", "vm:v1").json()
        self.assertEqual(info["depth"], 2)
        self.assertEqual(info["virtualSize"], MIB)
        self.assertRegex(info["chainId"], r"^sha256:[0-9a-f]{64}$")
        log = server.cairn("log", "--json", by_digest).json()
        self.assertEqual(len(log["layers"]), 2)
        self.assertIsInstance(server.cairn("map", "--json", "vm:v1").json(), list)
        self.assertEqual(server.cairn("ls", "--json").json()["repositories"], ["vm"])
        tags = server.cairn("ls", "--json", "vm").json()["tags"]
        self.assertEqual([tag["tag"] for tag in tags], ["v1", "v2"])
        self.assertEqual(server.cairn("diff", "--json", "vm:v1", "vm:v2").json()["extents"], [])
        self.assertEqual(run(CAIRN, "image", "info", "--json", top).json()["format"], "qcow2")
        self.assertIsInstance(run(CAIRN, "image", "map", "--json", top).json(), list)
        self.check_json_of_disk(server)

    def check_json_of_disk(self, server):
        disk = self.attach(server, "vm:v1", "--disk", self.tmp / "disk")
        self.assertIsInstance(server.cairn("info", "--json", self.tmp / "disk").json(), dict)
        disk.stop()
        self.assertIsInstance(server.cairn("info", "--json", self.tmp / "disk").json(), dict)

    def test_facts_for_people(self):
        server = self.cairnd()
        server.push(self.make_image(), "vm:v1")
        for arguments in (("info", "vm:v1"), ("log", "vm:v1"), ("map", "vm:v1"), ("ls",),
                          ("ls", "vm")):
            with self.subTest(arguments=arguments):
                said = server.cairn(*arguments).stdout.decode()
                self.assertTrue(said.strip())
                with self.assertRaises(json.JSONDecodeError):
                    json.loads(said)

    def test_tag_and_rm(self):
        server = self.cairnd()
        server.push(self.make_image(), "vm:v1")
        server.cairn("tag", "vm:v1", "other/vm:copy")
        server.cairn("rm", "vm:v1")
        server.cairn("info", "vm:v1", code=1)
        self.assertEqual(server.cairn("info", "--json", "other/vm:copy").json()["depth"], 2)

    def test_diff_names_what_changed(self):
        server = self.cairnd()
        top = self.make_image()
        server.push(top, "vm:v1")
        qemu.io(top, "write -q -P 2 512k 64k")
        server.push(top, "vm:v2")
        changes = server.cairn("diff", "--json", "vm:v1", "vm:v2").json()["extents"]
        covered = sorted((change["start"], change["start"] + change["length"])
                         for change in changes)
        self.assertTrue(any(start <= 512 << 10 and end >= 576 << 10 for start, end in covered),
                        changes)

    # -- Local images -----------------------------------------------------------------------------

    def test_image_create_makes_what_qemu_takes(self):
        path = self.tmp / "new.qcow2"
        run(CAIRN, "image", "create", path, "64M")
        qemu.check(path)
        info = qemu.img("info", "--output=json", path).json()
        self.assertEqual(info["virtual-size"], 64 * MIB)
        self.assertTrue(info["format-specific"]["data"]["extended-l2"])
        run(CAIRN, "image", "create", path, "64M", code=1)

    def test_image_create_with_backing(self):
        top, path = self.make_image(), self.tmp / "overlay.qcow2"
        run(CAIRN, "image", "create", "--backing", top, "--backing-format", "qcow2", path)
        self.assertEqual(qemu.convert(path, self.tmp / "a.raw"), qemu.convert(top, self.tmp / "b"))

    def test_server_log_is_logfmt(self):
        server = self.cairnd()
        server.http.get("/v2/")
        lines = wait_for(  # a request is logged when it has ended, behind its answer
            lambda: [line for line in server.text().splitlines() if "/v2/" in line],
            "the request to be logged")
        self.assertTrue(re.fullmatch(r'(\w+=("([^"\\]|\\.)*"|\S*) ?)+', lines[-1]), lines[-1])


if __name__ == "__main__":
    main()
