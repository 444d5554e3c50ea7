#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Restarts are invisible to guests: servers restarted in turn behind HAProxy, and one by itself, while
guests read, write and are snapshot; a store that is copied while it is written."""

import signal
import threading

import qemu
from cairntest import (CAIRN, MIB, ROOT, Attachment, Cairnd, Case, first_difference, main, random_bytes,
                       run, scaled, seeded, wait_for)
from guest_load import Load
from haproxy import HaProxy
from redis import free_port

SIZE = 32 * MIB
DRAIN = ("--drain-time", "2")


class Rolling(Case):
    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())
        self.ports = [free_port(), free_port()]

    def start_server(self, number, *arguments):
        """At the address that it always has, on the store of all."""
        return self.own(Cairnd(self.folder(f"server{number}"), store=self.tmp / "store",
                               arguments=("--listen", f"127.0.0.1:{self.ports[number]}", *arguments)))

    def stop_server(self, server):
        server.stop()
        self.processes.remove(server)

    def push_base(self, server, ref="demo/vm:v1"):
        raw, image = self.tmp / "base.raw", self.tmp / "base.qcow2"
        raw.write_bytes(random_bytes(self.rng, SIZE))
        qemu.img("convert", "-f", "raw", "-O", "qcow2", raw, image)
        server.push(image, ref)
        return raw.read_bytes()

    def guest(self, url, name, content, *arguments, write=False):
        attachment = self.own(Attachment(url, self.tmp / f"{name}.log", *arguments, "demo/vm:v1"))
        load = Load(attachment.socket, content, self.rng.randrange(1 << 32), write=write)
        self.addCleanup(load.end)
        return load

    def guests(self, url, content):
        """One that asks the service for everything, one that caches and writes."""
        return (self.guest(url, "reader", content, "--read-only"),
                self.guest(url, "writer", content, "--cache", self.tmp / "cache", "--disk",
                           self.tmp / "disk", write=True))

    def finish(self, guests):
        for guest in guests:
            guest.stop()
        print(f"  {' and '.join(str(guest.turns) for guest in guests)} requests", flush=True)

    def test_servers_behind_haproxy(self):
        servers = [self.start_server(number, *DRAIN) for number in range(2)]
        content = self.push_base(servers[0])
        proxy = self.own(HaProxy(self.tmp, *(f"127.0.0.1:{port}" for port in self.ports)))
        guests = self.guests(proxy.url, content)
        snapshots = Snapshots(self, proxy.url, guests[1])
        for turn in range(scaled(2, 2, 40)):
            number = turn % 2
            proxy.wait_for(number + 1, "UP")
            self.stop_server(servers[number])
            proxy.wait_for(number + 1, "DOWN")
            for guest in guests:
                guest.goes_on()
            servers[number] = self.start_server(number, *DRAIN)
        for number in (1, 2):
            proxy.wait_for(number, "UP")
        published = snapshots.end()
        self.finish(guests)
        for ref, expected in self.rng.sample(published, min(len(published), 3)):
            out = self.tmp / "pulled.raw"
            run(CAIRN, "pull", "--raw", ref, out, env={"CAIRN_SERVER": proxy.url})
            self.assertIsNone(first_difference(out.read_bytes(), expected), ref)
            out.unlink()

    def test_one_server(self):
        """Stopped or killed, and started again: reads wait meanwhile."""
        server = self.start_server(0)
        content = self.push_base(server)
        guests = self.guests(server.url, content)
        for turn in range(scaled(2, 4, 40)):
            for guest in guests:
                guest.goes_on()
            if turn % 2:
                server.popen.send_signal(signal.SIGKILL)
                server.wait(code=-signal.SIGKILL)
                self.processes.remove(server)
            else:
                self.stop_server(server)
            server = self.start_server(0)
        for guest in guests:
            guest.goes_on()
        self.finish(guests)

    def test_store_is_copied_while_it_is_written(self):
        """A backup by deploy/store-copy of a store in use holds whole disks, and so does what is restored
        from it; a store that lives on during the restoration gets its disks back."""
        server = self.start_server(0)
        content = self.push_base(server)
        stop = threading.Event()
        pushes = []

        def push():
            while not stop.is_set():
                name = f"demo/vm:more{len(pushes)}"
                image = self.tmp / f"more{len(pushes)}.qcow2"
                qemu.img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", image)
                qemu.io(image, f"write -q -P {1 + len(pushes) % 255} 1M 64k")
                server.push(image, name)
                pushes.append(name)
        pusher = threading.Thread(target=push)
        pusher.start()
        try:
            wait_for(lambda: len(pushes) >= 2, "pushes")
            copies = scaled(2, 4, 40)
            for _ in range(copies):
                run(ROOT / "deploy" / "store-copy", "backup", self.tmp / "store", self.tmp / "backup")
        finally:
            stop.set()
            pusher.join()
        self.stop_server(server)
        run(ROOT / "deploy" / "store-copy", "restore", self.tmp / "backup", self.tmp / "restored")
        restored = self.own(Cairnd(self.folder("restored-server"), store=self.tmp / "restored"))
        tags = restored.http.get("/v2/demo/vm/tags/list").json()["tags"]
        self.assertGreaterEqual(set(tags), {"v1", "more0", "more1"})
        for tag in tags:
            found = restored.http.data(f"demo/vm:{tag}")
            if tag == "v1":
                self.assertIsNone(first_difference(found, content))
            else:
                expected = bytearray(content)
                expected[MIB:MIB + 65536] = bytes([1 + int(tag[4:]) % 255]) * 65536
                self.assertIsNone(first_difference(found, bytes(expected)), tag)


class Snapshots:
    """Takes them of a writing guest's disk, one after another, in a thread."""

    def __init__(self, case, url, guest):
        self.case, self.url, self.guest = case, url, guest
        self.stopped, self.failure, self.published = threading.Event(), None, []
        self.thread = threading.Thread(target=self.work)
        self.thread.start()
        case.addCleanup(self.stop)

    def work(self):
        try:
            while not self.stopped.is_set():
                self.take(f"demo/vm:snapshot{len(self.published)}")
        except BaseException as error:  # raised by end()
            self.failure = error

    def take(self, ref):
        """A request that changes something is not repeated by the client when its server dies over it: the
        snapshot is taken again then.  The guest's reads and writes know nothing of that."""
        with self.guest.lock:
            wait_for(lambda: run(CAIRN, "snapshot", self.case.tmp / "disk", ref, code=None,
                                 env={"CAIRN_SERVER": self.url}).code == 0, f"the snapshot {ref}", 60)
            self.published.append((ref, bytes(self.guest.now)))
        self.guest.goes_on(5)

    def stop(self):
        self.stopped.set()
        self.thread.join()

    def end(self):
        self.stop()
        if self.failure:
            raise self.failure
        assert self.published
        return self.published


if __name__ == "__main__":
    main()
