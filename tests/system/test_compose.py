#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The deployments of deploy/ in a real Docker engine: brought up, used, hurt, rolled and taken down, while
guests read and write and must not notice.

The engine is the test's own (docker.py); one engine and one build of the images serve all tests.  Where no
engine can run, they are skipped."""

import socket
import unittest

import qemu
from cairntest import (CAIRN, MIB, ROOT, SANITIZER, Attachment, Case, first_difference,
                       main, random_bytes, run, seeded, wait_for)
from docker import TARGETS, Engine, Project
from guest_load import Load
from redis import free_port

SIZE = 48 * MIB
TAG = "test"


class Compose(Case):
    @classmethod
    def setUpClass(cls):
        cls.skipped = "images are built without sanitizers; the dev preset has this" if SANITIZER else ""
        if cls.skipped:
            return
        try:
            cls.engine = Engine()
        except unittest.SkipTest as reason:
            cls.skipped = str(reason)
            return
        cls.addClassCleanup(cls.engine.remove)
        cls.engine.build(TAG)

    def setUp(self):
        if self.skipped:
            self.skipTest(self.skipped)
        super().setUp()
        self.rng = seeded(self.id())
        self.containers = []
        self.port = free_port()

    def project(self, file, **settings):
        images = {f"{target.upper()}_IMAGE": f"cairn/{target}:{TAG}" for target in TARGETS}
        project = Project(self.engine, file, **images, CAIRN_PUBLISH=f"127.0.0.1:{self.port}",
                          PROMETHEUS_PUBLISH=f"127.0.0.1:{free_port()}", CAIRN_LOG_LEVEL="warn",
                          **settings)
        self.addCleanup(self.take_down, project)
        project.up()
        return project

    def take_down(self, project):
        """And nothing is left."""
        if not self._outcome.success:
            print(project.logs(), flush=True)
        for name in self.containers:
            self.engine("rm", "--force", name)
        project.down()
        self.assertEqual(self.engine.left(), {"containers": [], "volumes": [], "networks": []})

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def cairn(self, *arguments, **options):
        return run(CAIRN, *arguments, env={"CAIRN_SERVER": self.url}, **options)

    def push_base(self, ref="demo/vm:v1"):
        """An image of random bytes under a layer; what it holds."""
        raw, base, top = (self.tmp / name for name in ("base.raw", "base.qcow2", "top.qcow2"))
        raw.write_bytes(random_bytes(self.rng, SIZE))
        qemu.img("convert", "-f", "raw", "-O", "qcow2", raw, base)
        qemu.img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        qemu.io(top, *(f"write -q -P {self.rng.randrange(1, 256)} {at}M 64k" for at in range(0, 48, 5)))
        self.cairn("push", top, ref)
        return qemu.convert(top, self.tmp / "oracle.raw")

    def guest(self, project, name, *arguments):
        """A container that attaches a disk; the socket that NBD clients of this host use."""
        folder = self.folder(name)
        folder.chmod(0o777)
        container = f"{project.name}-{name}"
        self.containers.append(container)
        self.engine("run", "--detach", "--name", container, "--network", project.network, "--read-only",
                    "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--tmpfs=/tmp",
                    "--env=CAIRN_SERVER=http://haproxy:7117", f"--volume={folder}:/disk",
                    f"cairn/cairn:{TAG}", "attach", "--socket", "/disk/nbd.sock", *arguments)
        path = folder / "nbd.sock"
        wait_for(lambda: self.ready(container, path), f"{container} to listen", 60)
        return path

    def ready(self, container, path):
        if not self.engine.inspect(container)["State"]["Running"]:
            raise AssertionError(self.engine("logs", container).describe())
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
                return client.recv(8) == b"NBDMAGIC"
            except OSError:
                return False

    def load(self, path, content, **options):
        load = Load(path, content, self.rng.randrange(1 << 32), **options)
        self.addCleanup(load.end)
        return load

    def snapshot(self, project, writer, ref):
        """Of the writing guest's disk, in its container; a service that is being hurt may refuse it, and
        then it is done again."""
        with writer.lock:
            wait_for(lambda: self.engine("exec", f"{project.name}-writer", "cairn", "snapshot",
                                         "/disk/disk", ref, code=None).code == 0,
                     f"the snapshot {ref}", 120)
            return bytes(writer.now)

    def check_disk(self, ref, content):
        out = self.tmp / "pulled.raw"
        self.cairn("pull", "--raw", ref, out)
        self.assertIsNone(first_difference(out.read_bytes(), content), ref)
        out.unlink()

    def test_guests_notice_nothing(self):
        project = self.project("docker-compose.yml")
        content = self.push_base()
        reader = self.load(self.guest(project, "reader", "--read-only", "demo/vm:v1"), content)
        writer = self.load(self.guest(project, "writer", "--cache", "/disk/cache", "--disk", "/disk/disk",
                                      "demo/vm:v1"), content, write=True)
        published = {"demo/vm:v1": content}
        services = project.services()
        self.rng.shuffle(services)
        for service in services:
            print(f"  {service} dies", flush=True)
            project.crash(service)
            self.go_on(reader, writer)
            ref = f"demo/vm:without-{service}"
            published[ref] = self.snapshot(project, writer, ref)
        for service in ("cairnd1", "cairnd2"):
            print(f"  {service} is restarted", flush=True)
            project.compose("restart", "--timeout", "60", service)
            project.wait_healthy(service)
            self.go_on(reader, writer)
        self.engine("exec", project.container("redis"), "redis-cli", "flushall")
        self.go_on(reader, writer)
        published["demo/vm:last"] = self.snapshot(project, writer, "demo/vm:last")
        for load in (reader, writer):
            load.stop()
        print(f"  {reader.turns} and {writer.turns} requests", flush=True)
        for ref, expected in published.items():
            self.check_disk(ref, expected)

    def go_on(self, *loads):
        for load in loads:
            load.goes_on()

    def test_one_process(self):
        """Restarted and killed under a guest's reads, which take longer and do not fail."""
        project = self.project("docker-compose.single.yml")
        content = self.push_base()
        attachment = self.own(Attachment(self.url, self.tmp / "attach.log", "--read-only", "demo/vm:v1"))
        reader = self.load(attachment.socket, content)
        reader.goes_on()
        project.compose("restart", "--timeout", "60", "cairnd")
        reader.goes_on()
        project.crash("cairnd")
        reader.goes_on()
        reader.stop()

    def test_store_is_restored(self):
        """From a backup into an empty store under a running server."""
        project = self.project("docker-compose.single.yml")
        content = self.push_base()
        run(ROOT / "deploy" / "store-copy", "backup", self.volume(project), self.tmp / "backup")
        project.compose("down", "--volumes")
        project.up()
        self.assertNotEqual(self.cairn("info", "demo/vm:v1", code=None).code, 0)
        run(ROOT / "deploy" / "store-copy", "restore", self.tmp / "backup", self.volume(project))
        self.check_disk("demo/vm:v1", content)

    def volume(self, project):
        """Where this host sees the store."""
        return self.engine.inspect(f"{project.name}_store", "volume")["Mountpoint"]

    def test_tls(self):
        pem, crt = self.tmp / "cairn.pem", self.tmp / "cairn.crt"
        key = self.tmp / "key"
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
            "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", crt)
        pem.write_bytes(crt.read_bytes() + key.read_bytes())
        self.tmp.chmod(0o755)
        pem.chmod(0o644)
        self.project("docker-compose.yml", CAIRN_TLS_PEM=str(pem))
        said = run("curl", "--silent", "--show-error", "--fail", "--cacert", crt,
                   f"https://127.0.0.1:{self.port}/v2/")
        self.assertEqual(said.stdout, b"{}")
        self.assertNotEqual(run("curl", "--silent", "--fail", f"{self.url}/v2/", code=None).code, 0)

    def test_images_are_hardened(self):
        sizes = []
        for target in TARGETS:
            image = self.engine.inspect(f"cairn/{target}:{TAG}", "image")
            self.assertNotIn(image["Config"]["User"], ("", "root", "0"), target)
            sizes.append(f"{target} {image['Size'] / 1e6:.0f} MB")
            tools = self.engine("run", "--rm", "--network=none", "--entrypoint=sh",
                                f"cairn/{target}:{TAG}", "-c", "! command -v gcc cmake")
            self.assertEqual(tools.stdout, b"", target)
        base = self.engine.inspect("debian:bookworm-slim", "image")["Size"]
        print(f"  {', '.join(sizes)}; of which the base {base / 1e6:.0f} MB", flush=True)
        for target in ("cairnd", "cairn"):
            config = self.engine.inspect(f"cairn/{target}:{TAG}", "image")["Config"]
            self.assertRegex(config["User"], r"^\d+:\d+$")
            self.assertIn("org.opencontainers.image.version", config["Labels"])
        self.assertIn("Healthcheck", self.engine.inspect(f"cairn/cairnd:{TAG}", "image")["Config"])


if __name__ == "__main__":
    main()
