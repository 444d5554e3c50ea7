#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Two servers on one store, one Redis, several clients: whatever fails, as long as one server is up no
read fails, and no byte is wrong."""

import os
import random
import threading
import time

import qemu
from cairntest import (BUILD, CAIRN, Attachment, Cairnd, Case, KIB, MIB, main,
                       preload, random_bytes, run, scaled, seeded, wait_for)
from nbdclient import NbdClient
from redis import Redis, free_port

SIZE = 40 * MIB  # two slices
CLUSTER = 64 * KIB
SECONDS = int(os.environ.get("CAIRN_TEST_SECONDS") or scaled(4, 8, 600))
NR_CLIENTS = 3
DEPTH_MAX = 12  # then a client begins with the base again
DEADLINE = 3.0  # seconds, of reads from a server that does not answer


class Servers:
    """Two of them on one store, each at an address of its own that it keeps."""

    def __init__(self, case, *arguments):
        self.case, self.arguments = case, arguments
        self.ports = [free_port() for _ in range(2)]
        self.up = [self.start(i) for i in range(2)]

    def start(self, number):
        listen = ("--listen", f"127.0.0.1:{self.ports[number]}")
        return self.case.own(Cairnd(self.case.folder(f"server{number}"), store=self.case.tmp / "store",
                                    arguments=(*listen, *self.arguments)))

    def kill(self, number):
        self.up[number].kill()
        self.case.processes.remove(self.up[number])

    def restart(self, number):
        self.up[number] = self.start(number)

    def urls(self, first=0):
        return ",".join(f"http://127.0.0.1:{self.ports[i]}" for i in (first, 1 - first))


def make_base(rng, tmp):
    """Random bytes, compressed clusters, zeros and holes."""
    raw, base = tmp / "base.raw", tmp / "base.qcow2"
    words = [random_bytes(rng, 16) for _ in range(64)]
    raw.write_bytes(random_bytes(rng, 12 * MIB) + b"".join(rng.choices(words, k=8 * MIB // 16)))
    os.truncate(raw, SIZE)
    qemu.img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, base)
    return base


class ServerFails(Case):
    """A disk is read while the server that it is read from dies, or stops to answer."""

    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())
        self.servers = Servers(self)
        base = make_base(self.rng, self.tmp)
        self.servers.up[0].push(base, "vm:v1")
        self.oracle = qemu.convert(base, self.tmp / "oracle.raw")

    def test_reads_go_on_when_a_server_is_killed(self):
        attachment = self.own(Attachment(self.servers.urls(), self.tmp / "attach.log", "--read-only",
                                         "vm:v1"))
        out = self.tmp / "out"
        for turn in range(scaled(4, 10, 100)):
            reader = self.start(["nbdcopy", "--requests=8", attachment.uri, out], f"read{turn}")
            time.sleep(self.rng.random() * 0.1)  # somewhere in its midst
            self.servers.kill(turn % 2)
            reader.wait()
            self.processes.remove(reader)
            self.assertEqual(out.read_bytes(), self.oracle)
            self.servers.restart(turn % 2)

    def nbdkit(self, urls):
        """A disk that is patient for DEADLINE."""
        path = self.tmp / "nbd.sock"
        self.start(["nbdkit", "-f", "--unix", path, BUILD / "lib" / "nbdkit-cairn-plugin.so",
                    "ref=vm:v1", f"server={urls}", f"deadline={int(DEADLINE * 1000)}"], "nbdkit",
                   env=preload())
        return wait_for(lambda: self.connects(path), "nbdkit to answer")

    def connects(self, path):
        try:
            return NbdClient(str(path))
        except OSError:
            return None

    def timed_read(self, disk, first=0, length=20 * MIB):
        """A read in a range of the disk: what it gave, or None for an error, and the time."""
        at = first + self.rng.randrange(length // CLUSTER) * CLUSTER
        began = time.monotonic()
        try:
            data = disk.read(at, 4096)
            self.assertEqual(data, self.oracle[at:at + 4096])
        except OSError:
            data = None
        return data, time.monotonic() - began

    def test_a_server_that_does_not_answer_is_given_up(self):
        disk = self.nbdkit(self.servers.urls())
        self.assertIsNotNone(self.timed_read(disk)[0])
        self.servers.up[0].pause()
        try:
            for _ in range(20):
                data, seconds = self.timed_read(disk)
                self.assertIsNotNone(data)
                self.assertLess(seconds, 2 * DEADLINE)
        finally:
            self.servers.up[0].go_on()
        disk.close()

    def test_nobody_answers(self):
        """An error by the deadline, and right bytes as soon as somebody is there again."""
        disk = self.nbdkit(self.servers.urls())
        self.assertIsNotNone(self.timed_read(disk, 0, MIB)[0])
        try:
            for server in self.servers.up:
                server.pause()
            # Nothing has read ahead as far as that, nor decompressed it.
            data, seconds = self.timed_read(disk, 8 * MIB, MIB)
            self.assertTrue(data is None, "a read was answered, and by whom?")
            self.assertLess(seconds, 3 * DEADLINE)
        finally:
            for server in self.servers.up:
                server.go_on()
        for _ in range(20):
            self.assertIsNotNone(self.timed_read(disk)[0])
        disk.close()


class Trouble:
    """Threads that make it until they are told to stop, or one of the fleet fails."""

    def __init__(self):
        self.stop = threading.Event()
        self.failure = None
        self.threads = []

    def go(self, function, *arguments):
        def work():
            try:
                while not self.stop.is_set():
                    function(*arguments)
            except BaseException as error:  # raised by end()
                self.failure = self.failure or error
                self.stop.set()
        thread = threading.Thread(target=work)
        self.threads.append(thread)
        thread.start()

    def end(self, after, enough):
        """Go on for so many seconds, and on a busy machine until there was enough of everything."""
        self.stop.wait(after)
        try:
            wait_for(lambda: self.failure or enough(), "every client to get something done", 120)
        finally:
            self.stop.set()
        for thread in self.threads:
            thread.join()
        if self.failure:
            raise self.failure


class Client:
    """Pushes, tags and reads at random; what it reads is compared with what was pushed."""

    def __init__(self, fleet, number):
        self.fleet, self.number = fleet, number
        self.rng = random.Random(fleet.rng.randrange(1 << 32))
        self.folder = fleet.folder(f"client{number}")
        self.env = {"CAIRN_SERVER": fleet.servers.urls(number % 2)}
        if number != 0:  # two of them share a block cache
            self.env["CAIRN_CACHE"] = str(fleet.tmp / "cache")
        self.top, self.depth, self.names = fleet.base, 1, 0
        self.reads = self.pushes = self.failed_pushes = 0

    def cairn(self, *arguments, **options):
        return run(CAIRN, *arguments, env=self.env, **options)

    def act(self):
        self.rng.choices((self.push, self.tag, self.attach_and_read, self.pull), (4, 1, 4, 1))[0]()

    def name(self, kind):
        self.names += 1
        return f"vm:{kind}{self.number}-{self.names}"

    def push(self):
        """A layer on the one before.  A POST that a killed server may have done is not repeated by the
        client: the push may fail, and is done again."""
        ref = self.name("push")
        if self.depth == DEPTH_MAX:
            self.top, self.depth = self.fleet.base, 1
        path = self.folder / f"{ref[3:]}.qcow2"
        qemu.img("create", "-q", "-f", "qcow2", "-b", self.top, "-F", "qcow2", path)
        qemu.io(path, *(f"write -q -P {self.rng.randrange(256)} "
                        f"{self.rng.randrange(SIZE // 4096) * 4}k 4k" for _ in range(30)))
        for _ in range(20):
            if self.cairn("push", path, ref, code=None).code == 0:
                break
            self.failed_pushes += 1
        else:
            self.cairn("push", path, ref)
        self.top, self.depth = path, self.depth + 1
        self.pushes += 1
        self.fleet.published(ref, qemu.convert(path, self.folder / "oracle"))

    def tag(self):
        ref, oracle = self.fleet.any_ref(self.rng)
        new = self.name("tag")
        if self.cairn("tag", ref, new, code=None).code == 0:
            self.fleet.published(new, oracle)

    def pull(self):
        ref, oracle = self.fleet.any_ref(self.rng)
        out = self.folder / "pulled"
        out.unlink(missing_ok=True)
        self.cairn("pull", "--raw", ref, out)
        self.check(ref, 0, out.read_bytes(), oracle)

    def attach_and_read(self):
        ref, oracle = self.fleet.any_ref(self.rng)
        attachment = Attachment(self.env["CAIRN_SERVER"], self.folder / "attach.log", "--read-only",
                                *(("--cache", self.env["CAIRN_CACHE"])
                                  if "CAIRN_CACHE" in self.env else ()), ref)
        try:
            self.read(attachment, ref, oracle)
            attachment.stop()
        except BaseException:
            print(attachment.describe())
            raise
        finally:
            attachment.end()

    def read(self, attachment, ref, oracle):
        disk = NbdClient(attachment.socket)
        at = self.rng.randrange(SIZE)
        for _ in range(self.rng.randrange(20, 200)):
            length = self.rng.choice((512, 4096, 4096, 64 * KIB, MIB))
            if self.rng.random() < 0.3 or at + length > SIZE:
                at = self.rng.randrange((SIZE - length) // 512) * 512
            self.check(ref, at, disk.read(at, length), oracle[at:at + length])
            at += length
        disk.close()
        if self.rng.random() < 0.3:
            out = self.folder / "read"
            run("nbdcopy", "--requests=8", attachment.uri, out)
            self.check(ref, 0, out.read_bytes(), oracle)

    def check(self, ref, at, data, oracle):
        if data != oracle:
            wrong = next(i for i, (a, b) in enumerate(zip(data, oracle)) if a != b)
            raise AssertionError(f"{ref}: byte {at + wrong} is wrong")
        self.reads += 1


class Fleet(Case):
    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())
        self.lock = threading.Lock()
        self.refs = []
        self.redis = self.start_redis()
        self.servers = Servers(self, "--redis", self.redis.address)
        self.base = make_base(self.rng, self.tmp)
        self.servers.up[0].push(self.base, "vm:base")
        self.published("vm:base", qemu.convert(self.base, self.tmp / "oracle.raw"))

    def start_redis(self, port=None):
        return self.own(Redis(self.tmp / "redis", port=port))

    def published(self, ref, oracle):
        with self.lock:
            self.refs.append((ref, oracle))
            if len(self.refs) > 24:  # the oracles are in memory
                self.refs.pop(self.rng.randrange(len(self.refs)))

    def any_ref(self, rng):
        with self.lock:
            return rng.choice(self.refs)

    def trouble_redis(self, trouble, rng):
        kind = rng.choice(("flush", "flush", "pause", "kill"))
        if kind == "flush":
            self.redis.ask("FLUSHALL")
        elif kind == "pause":
            self.redis.pause()
            trouble.stop.wait(rng.random())
            self.redis.go_on()
        else:
            self.redis.kill()
            self.processes.remove(self.redis)
            trouble.stop.wait(rng.random() / 2)
            self.redis = self.start_redis(self.redis.port)
        trouble.stop.wait(0.1 + rng.random() / 2)

    def trouble_servers(self, trouble, rng):
        number = rng.randrange(2)
        self.servers.kill(number)
        trouble.stop.wait(rng.random())
        self.servers.restart(number)
        trouble.stop.wait(0.2 + rng.random())

    def test_nothing_is_wrong_whatever_fails(self):
        trouble = Trouble()
        clients = [Client(self, number) for number in range(NR_CLIENTS)]
        for client in clients:
            trouble.go(client.act)
        for maker in (self.trouble_redis, self.trouble_servers):
            trouble.go(maker, trouble, random.Random(self.rng.randrange(1 << 32)))
        trouble.end(SECONDS, lambda: all(c.reads for c in clients) and any(c.pushes for c in clients))
        print(f"{sum(c.pushes for c in clients)} pushes ({sum(c.failed_pushes for c in clients)} done "
              f"again), {sum(c.reads for c in clients)} reads", flush=True)
        for ref, oracle in self.refs[-4:]:
            for server in self.servers.up:
                self.assertEqual(server.http.data(ref), oracle, ref)


if __name__ == "__main__":
    main()
