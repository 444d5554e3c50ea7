# SPDX-License-Identifier: Apache-2.0
"""Garbage collection and leases, with the programs as they are: two servers over one store,
publishers, mounters, taggers, deleters, lease holders and collectors at random, processes that are
killed; and what an operator sees of it.

CAIRN_TEST_SECONDS says for how long the random test goes on (default: a few seconds).
"""

import contextlib
import hashlib
import http.client
import http.server
import json
import os
import random
import threading
import time

from cairntest import (CAIRN, Case, SEED, SLOWER, main, preload, random_bytes, run, scaled, seeded,
                       wait_for, KIB)

SECONDS = float(os.environ.get("CAIRN_TEST_SECONDS") or scaled(4, 8, 60))
CONFIG = b"{}"


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(kind, data):
    return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}


def manifest_of(layers, note):
    """An artifact of any blobs: what is collected does not depend on their content."""
    return json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/x-test", "annotations": {"note": note},
        "config": descriptor("application/vnd.oci.empty.v1+json", CONFIG),
        "layers": [descriptor("application/octet-stream", layer) for layer in layers],
    }).encode()


class Disk:
    def __init__(self, layers, note):
        self.layers = [CONFIG, *layers]
        self.manifest = manifest_of(layers, note)
        self.digest = digest_of(self.manifest)


class Actor(threading.Thread):
    """Does something again and again, on either server, until the end; a server may be down."""

    def __init__(self, world, number):
        super().__init__(daemon=True)
        self.world, self.rng = world, random.Random(f"{SEED}/{type(self).__name__}/{number}")
        self.number, self.failure = number, None

    def run(self):
        try:
            while not self.world.over.is_set():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    self.act()
        except BaseException as error:  # told by the test
            self.failure = error
            self.world.over.set()

    def request(self, method, path, body=None, **headers):
        server = self.rng.choice(self.world.servers)
        return server.http.request(method, path, body,
                                   {k.replace("_", "-"): v for k, v in headers.items()})

    # -- What clients do; None: the server has gone away, or is busy.

    def give_blob(self, repo, data, look):
        digest = digest_of(data)
        if look and self.request("HEAD", f"/v2/{repo}/blobs/{digest}").status == 200:
            return
        others = [r for r in [*self.world.repos, "deleted"] if r != repo]
        how = f"?mount={digest}&from={self.rng.choice(others)}" if look else f"?digest={digest}"
        answer = self.request("POST", f"/v2/{repo}/blobs/uploads/{how}", b"" if look else data,
                              Content_Type="application/octet-stream")
        if answer.status == 202:  # not mounted
            self.give_blob(repo, data, False)
        elif answer.status != 201:
            assert answer.status in (503, 404, 409), (answer.status, answer.body)

    def publish(self, repo, tag, disk):
        """True once it is; what is said to be missing is sent again."""
        look = self.rng.random() < 0.6
        while not self.world.over.is_set():
            for layer in disk.layers:
                if self.rng.random() < 0.9 or not look:
                    self.give_blob(repo, layer, look)
            answer = self.request("PUT", f"/v2/{repo}/manifests/{tag}", disk.manifest,
                                  Content_Type="application/vnd.oci.image.manifest.v1+json")
            if answer.status == 201:
                return True
            assert answer.status in (404, 503), (answer.status, answer.body)
            look = False
        return False

    def check_blob(self, repo, data, why):
        path = f"/v2/{repo}/blobs/{digest_of(data)}"
        while True:
            answer = self.request("HEAD", path)  # asks the store
            if answer.status == 200:
                answer = self.request("GET", path)
            if answer.status != 503:
                break
        assert answer.status == 200 and answer.body == data, \
            (why, path, answer.status, answer.body[:200])

    def check_disk(self, repo, ref, disk, why):
        while True:
            answer = self.request("GET", f"/v2/{repo}/manifests/{ref}")
            if answer.status != 503:
                break
        assert answer.status == 200 and answer.body == disk.manifest, \
            (why, repo, ref, disk.digest, answer.status, answer.body[:300])
        for layer in disk.layers:
            self.check_blob(repo, layer, why)

    def some_disk(self):
        """Few layers and few notes, so that everybody uses the same ones."""
        layers = self.rng.sample(self.world.layers, self.rng.randrange(1, 4))
        return Disk(layers, str(self.rng.randrange(3)))


class Tagger(Actor):
    """Has tags of its own, which name what it has last put there; takes them away."""

    def __init__(self, world, number):
        super().__init__(world, number)
        self.tags = {}

    def act(self):
        repo, tag = self.rng.choice(self.world.repos), f"t{self.number}-{self.rng.randrange(3)}"
        key = (repo, tag)
        if self.rng.random() < 0.3:
            self.tags.pop(key, None)
            answer = self.request("DELETE", f"/v2/{repo}/manifests/{tag}")
            assert answer.status in (202, 404, 503), (answer.status, answer.body)
            return
        disk = self.some_disk()
        # From the first try on the tag may name either; a server that dies may have set it.
        self.tags.pop(key, None)
        if self.publish(repo, tag, disk):
            self.tags[key] = disk
        for (repo, tag), disk in self.tags.items():
            self.check_disk(repo, tag, disk, "tagged")


class Holder(Actor):
    """Leases what it finds, and reads it for as long as it has the lease."""

    def act(self):
        repo, disk = self.rng.choice(self.world.repos), self.some_disk()
        if not self.publish(repo, f"h{self.number}", disk):
            return
        answer = self.request("POST", f"/v1/disks/{repo}@{disk.digest}/leases",
                              json.dumps({"holder": f"test {self.number}", "ttl": 600}))
        assert answer.status in (201, 404, 503), (answer.status, answer.body)
        self.request("DELETE", f"/v2/{repo}/manifests/h{self.number}")
        if answer.status != 201:
            return
        path = f"/v1/disks/{repo}@{disk.digest}/leases/{answer.json()['id']}"
        for _ in range(self.rng.randrange(1, 5)):
            self.check_disk(repo, disk.digest, disk, "leased")
            answer = self.request("PUT", path)
            assert answer.status in (200, 503), (answer.status, answer.body)
        while self.request("DELETE", path).status not in (204, 404):
            pass


class Deleter(Actor):
    """Publishes and deletes by digest, in a repository where nobody expects anything to last."""

    def act(self):
        disk = self.some_disk()
        if not self.publish("deleted", f"d{self.rng.randrange(2)}", disk):
            return
        answer = self.request("DELETE", f"/v2/deleted/manifests/{disk.digest}")
        assert answer.status in (202, 404, 503), (answer.status, answer.body)


class Collector(Actor):
    def act(self):
        grace = self.rng.choice([0, 0, 1])
        answer = self.request("POST", "/v1/gc", json.dumps({"grace": grace}))
        assert answer.status in (202, 409, 503), (answer.status, answer.body)
        time.sleep(self.rng.random() / 50)


class World:
    def __init__(self, rng, servers):
        self.servers = servers
        self.over = threading.Event()
        self.repos = ["a", "b/c"]  # and "deleted", the Deleters' own
        self.layers = [random_bytes(rng, rng.randrange(1, 20 * KIB)) for _ in range(6)]


class Between(http.server.BaseHTTPRequestHandler):
    """Hands requests on to a server, and calls a function before each PUT of a manifest."""

    protocol_version = "HTTP/1.1"

    def hand_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "PUT" and "/manifests/" in self.path:
            self.server.before_manifest()
        answer = self.server.behind.http.request(
            self.command, self.path, body,
            {k: v for k, v in self.headers.items() if k.lower() not in ("host", "expect")})
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in ("connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = hand_on

    def log_message(self, *_):
        pass


class Gc(Case):
    def collect(self, server, *arguments):
        return server.cairn("gc", "--json", *arguments).json()["result"]

    def image(self, name, pattern):
        path = self.tmp / name
        run("qemu-img", "create", "-q", "-f", "qcow2", path, "16M")
        run("qemu-io", "-c", f"write -P {pattern} 0 256k", path)
        return path

    def stored(self, server, *folders):
        return {name for name in server.files() if name.split("/")[0] in folders}

    # -- What an operator and a host see -------------------------------------------------------

    def test_gc_gives_back_what_no_tag_leads_to(self):
        server = self.cairnd()
        kept, gone = self.image("kept.qcow2", 1), self.image("gone.qcow2", 2)
        server.push(kept, "r:kept")
        server.push(gone, "r:gone")
        before = self.stored(server, "blobs", "index", "repos")
        server.cairn("rm", "r:gone")
        young = server.cairn("gc").stdout.decode()
        self.assertIn("0 of 3 gone", young)  # the server's grace is a day
        told = self.collect(server, "--dry-run", "--grace", "0s")
        self.assertEqual(self.stored(server, "blobs", "index", "repos") | {"repos/r/_tags/gone"},
                         before)
        done = self.collect(server, "--grace", "0s")
        self.assertEqual({k: v["deleted"] for k, v in told["kinds"].items()},
                         {k: v["deleted"] for k, v in done["kinds"].items()})
        self.assertEqual((done["kinds"]["manifests"]["deleted"],
                          done["kinds"]["blobs"]["deleted"], done["kinds"]["index"]["deleted"]),
                         (1, 1, 1))
        self.assertEqual(told["bytesFreed"], done["bytesFreed"])
        self.assertGreater(done["bytesFreed"], 256 * KIB)
        self.assertEqual(len(before - self.stored(server, "blobs", "index", "repos")), 5)
        server.cairn("verify", "r:kept")
        metrics = server.metrics()
        self.assertEqual(metrics["cairn_gc_freed_bytes_total"], done["bytesFreed"])
        self.assertEqual(metrics['cairn_gc_runs_total{result="done"}'], 2)
        self.assertGreater(metrics["cairn_gc_last_success_timestamp_seconds"], 0)
        server.cairn("gc", "--grace", "a while", code=2)
        self.assertRegex(server.cairn("gc", "--no-wait").last_line, r"^gc-")

    def open_blobs(self, server, ending):
        names = []
        for fd in os.listdir(f"/proc/{server.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                names.append(os.readlink(f"/proc/{server.pid}/fd/{fd}"))
        return [name for name in names if "/blobs/sha256/" in name and name.endswith(ending)]

    def test_the_space_of_what_was_read_comes_back(self):
        """Also from a server that has it open, and did not collect it."""
        server, other = self.serve("one"), self.serve("two")
        server.push(self.image("a.qcow2", 5), "r:a")
        layer = server.cairn("info", "r:a", "--json").json()["layers"][0]["digest"]
        for each in server, other:
            self.assertEqual(each.http.get("/v1/disks/r:a/data").status, 200)
            self.assertEqual(each.http.get(f"/v2/r/blobs/{layer}").status, 200)
            self.assertTrue(self.open_blobs(each, layer.partition(":")[2]))
        server.cairn("rm", "r:a")
        self.collect(server, "--grace", "0")
        for each in server, other:
            wait_for(lambda each=each: not self.open_blobs(each, " (deleted)"),
                     "what is deleted to be closed")

    def test_two_disks_that_share_layers(self):
        """Deleting one does not harm the other."""
        server = self.cairnd()
        base, top = self.image("base.qcow2", 1), self.tmp / "top.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        run("qemu-io", "-c", "write -P 3 1M 64k", top)
        server.push(base, "r:base")
        by_digest = server.push(top, "r:top")
        server.cairn("rm", "r:base")
        self.collect(server, "--grace", "0")
        server.cairn("verify", "r:top")
        server.push(base, "r:base")
        server.cairn("rm", "--force", by_digest)
        self.collect(server, "--grace", "0")
        server.cairn("verify", "r:base")
        self.assertEqual(len(self.stored(server, "blobs")), 2)  # and the empty config

    def leases(self, server):
        return server.cairn("ls", "--leases", "--json").json()["leases"]

    def test_an_attached_disk_is_leased(self):
        server = self.cairnd(arguments=["--gc-grace", "0"])
        server.push(self.image("a.qcow2", 5), "r:a")
        folder = self.tmp / "disk"
        attached = self.attach(server, "r:a", "--disk", folder)
        (first,) = self.leases(server)
        self.assertTrue(first["holder"].endswith(f":{folder}"), first)
        self.assertIn(str(folder), server.cairn("ls", "--leases", "r").stdout.decode())
        server.cairn("rm", "r:a")
        self.collect(server)
        run("qemu-io", "-f", "raw", attached.uri, "-c", "read -P 5 0 256k",
            "-c", "write -P 6 1M 64k")
        # A snapshot moves it to the new chain.
        published = server.cairn("snapshot", folder, "r:b").last_line
        (second,) = self.leases(server)
        self.assertEqual(f"r@{second['manifest']}", published)
        server.cairn("rm", "r:b")
        self.collect(server)
        run("qemu-io", "-f", "raw", attached.uri, "-c", "read -P 5 0 256k",
            "-c", "read -P 6 1M 64k")
        # Letting go ends it.
        attached.stop()
        self.assertEqual(self.leases(server), [])
        self.collect(server)
        self.assertEqual(self.stored(server, "blobs", "repos", "index"), set())

    def test_a_lease_for_longer_than_a_day_is_refused(self):
        server = self.cairnd()
        server.push(self.image("a.qcow2", 5), "r:a")
        refused = server.cairn("attach", "r:a", "--read-only", "--lease", "86401", code=1,
                               env=preload())
        self.assertIn("a lease of 86401 seconds, expected at most 86400",
                      refused.stderr.decode())
        self.assertEqual(self.leases(server), [])

    def test_a_host_that_dies_loses_its_lease(self):
        server = self.cairnd(arguments=["--gc-grace", "0"])
        server.push(self.image("a.qcow2", 5), "r:a")
        attached = self.attach(server, "r:a", "--read-only", "--lease", "6")
        self.assertEqual(len(self.leases(server)), 1)
        server.cairn("rm", "r:a")
        attached.crash()
        self.processes.remove(attached)
        wait_for(lambda: self.leases(server) == [], "the lease to expire")
        self.collect(server)
        self.assertEqual(self.stored(server, "blobs", "repos", "leases"), set())

    def test_a_lease_outlives_its_server(self):
        """It is renewed as soon as there is one again, and reads do not wait for it."""
        server = self.cairnd(arguments=["--gc-grace", "0"])
        server.push(self.image("a.qcow2", 5), "r:a")
        attached = self.attach(server, "r:a", "--read-only", "--lease", "6")
        (lease,) = self.leases(server)
        server.kill()
        self.processes.remove(server)
        again = self.cairnd(arguments=["--gc-grace", "0", "--listen", f"127.0.0.1:{server.port}"])
        renewed = wait_for(lambda: [x for x in self.leases(again)
                                    if x["renewed"] > lease["renewed"]], "the lease's renewal")
        self.assertEqual(renewed[0]["manifest"], lease["manifest"])
        run("qemu-io", "-f", "raw", "-r", attached.uri, "-c", "read -P 5 0 256k")

    def test_a_push_sends_again_what_was_collected(self):
        """Everything that is there or was sent is collected just before the manifest is put."""
        server = self.cairnd(arguments=["--gc-grace", "0"])
        base, top = self.image("base.qcow2", 1), self.tmp / "top.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        run("qemu-io", "-c", "write -P 3 1M 64k", top)
        server.push(base, "r:base")
        server.cairn("rm", "r:base")
        left = [3]

        def collect():
            if left[0] > 0:
                left[0] -= 1
                self.collect(server)
                self.assertEqual(self.stored(server, "blobs"), set())
        between = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Between)
        between.behind, between.before_manifest = server, collect
        threading.Thread(target=between.serve_forever, daemon=True).start()
        self.addCleanup(between.server_close)
        self.addCleanup(between.shutdown)
        run(CAIRN, "push", top, "r:top",
            env={"CAIRN_SERVER": f"http://127.0.0.1:{between.server_port}"})
        self.assertEqual(left, [0])
        server.cairn("verify", "r:top")

    # -- The random test ----------------------------------------------------------------------

    def serve(self, name):
        return self.cairnd(name, store=self.tmp / "store", env={"CAIRN_STEP_PAUSE": "3000"},
                           arguments=["--gc-grace", "0", "--workers", "16"])

    def replace(self, world, index, name):
        """SIGKILL to a server in the middle of whatever it does, and another in its place."""
        dead = world.servers[index]
        dead.kill()
        self.processes.remove(dead)
        world.servers[index] = self.serve(name)

    def kill_and_wait(self, world, rng):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and not world.over.is_set():
            world.over.wait(rng.random() * 2)
            index = rng.randrange(2)
            if rng.random() < 0.5:
                self.replace(world, index, ("one", "two")[index])
        world.over.set()

    def last_run(self, server):
        runs = server.http.get("/v1/jobs?kind=gc").json()["jobs"]
        return runs[0]["state"] if runs else None

    def check_exact(self, world, actors):
        """What tags name is there, byte for byte, and nothing else."""
        server, expected = world.servers[0], set()
        for actor in actors:
            for (repo, tag), disk in getattr(actor, "tags", {}).items():
                actor.check_disk(repo, tag, disk, "in the end")
        for repo, tag in self.tags(world):
            answer = server.http.get(f"/v2/{repo}/manifests/{tag}")
            self.assertEqual(answer.status, 200, (repo, tag))
            manifest = answer.json()
            expected |= {d["digest"][7:] for d in [manifest["config"], *manifest["layers"]]}
        wait_for(lambda: self.last_run(server) not in ("running", "interrupted"),
                 "collectors' last run, which another would join")
        self.collect(server, "--grace", "0")
        blobs = {name.rpartition("/")[2] for name in self.stored(server, "blobs")}
        self.assertEqual(blobs, expected)

    def check_empty(self, world):
        """Without tags there is nothing, nor anything left of collectors and claims."""
        server = world.servers[0]
        for repo, tag in self.tags(world):
            self.assertEqual(server.http.request("DELETE", f"/v2/{repo}/manifests/{tag}").status,
                             202)
        self.collect(server, "--grace", "0")
        self.assertEqual(self.stored(server, "blobs", "repos", "index", "condemned", "claims",
                                     "leases", "gc"), set())

    def tags(self, world):
        for repo in [*world.repos, "deleted"]:
            answer = world.servers[0].http.get(f"/v2/{repo}/tags/list").json()
            yield from ((repo, tag) for tag in answer.get("tags", []))

    def end_what_was_killed(self, world):
        """Leases whose holder lost its server, and claims of servers, would last for long."""
        server = world.servers[0]
        for lease in server.http.get("/v1/leases").json()["leases"]:
            ref = f"{lease['repository']}@{lease['manifest']}"
            server.http.request("DELETE", f"/v1/disks/{ref}/leases/{lease['id']}")
        for claim in (self.tmp / "store" / "claims").glob("*"):
            os.utime(claim, (0, 0))

    def test_random_work_beside_collectors(self):
        rng = seeded("gc")
        world = World(rng, [self.serve("one"), self.serve("two")])
        kinds = [Tagger, Tagger, Tagger, Holder, Holder, Deleter, Deleter, Collector, Collector]
        actors = [kind(world, i) for i, kind in enumerate(kinds)]
        for actor in actors:
            actor.start()
        self.kill_and_wait(world, rng)
        for actor in actors:
            actor.join(120 * SLOWER)
            self.assertFalse(actor.is_alive(), f"{type(actor).__name__} is stuck")
        for actor in actors:
            if actor.failure:
                raise actor.failure
        self.end_what_was_killed(world)
        self.check_exact(world, actors)
        self.check_empty(world)


if __name__ == "__main__":
    main()
