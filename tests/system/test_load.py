#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Many clients at a time, mixing everything, each of which knows what must be there and compares every
byte (load_clients.py): on a server that stays up, whose memory is printed, and on one that is killed
again and again.  For minutes: CAIRN_TEST_SECONDS=300."""

import hashlib
import json
import os
import pathlib
import sys
import time

import load_clients
from cairntest import Cairnd, Case, MIB, SANITIZER, main, scaled, seeded, wait_for
from redis import free_port

SECONDS = int(os.environ.get("CAIRN_TEST_SECONDS") or scaled(3, 6, 120))
NR_CLIENTS = scaled(64, 256, 256)
NR_PROCESSES = 4
SHARED_SIZE = 8 * MIB
# So that what is freed goes, and what grows shows.
ENVIRONMENT = {"ASAN_OPTIONS": "quarantine_size_mb=8"} if "address" in SANITIZER else {}


def resident(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def names(folder):
    return [files for _, _, files in os.walk(folder)]


class Load(Case):
    def start_clients(self, port, nr_clients, *arguments):
        self.until = self.tmp / "until"
        each = nr_clients // NR_PROCESSES
        return [self.start([sys.executable, load_clients.__file__, "--port", port, "--first",
                            i * each, "--clients", each, "--until", self.until, *arguments],
                           f"clients{i}", env={"CAIRN_TEST_SEED": str(self.seed)})
                for i in range(NR_PROCESSES)]

    def setUp(self):
        super().setUp()
        self.seed = seeded(self.id()).randrange(1 << 32)

    def end_clients(self, clients):
        """Let them look at all that they have; what they say."""
        self.until.touch()
        said = []
        for process in clients:
            process.wait(timeout=600)
            self.processes.remove(process)
            said.append(json.loads(process.text().strip().splitlines()[-1]))
        return {key: sum(one[key] for one in said) for key in said[0]}

    def check_blobs(self, store):
        """Every blob that can be seen has its digest."""
        blobs = [path for path in (store / "blobs").rglob("*") if path.is_file()]
        for path in blobs:
            self.assertEqual(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)
        return len(blobs)

    def test_many_clients(self):
        server = self.own(Cairnd(self.folder("server"), arguments=["--log-level", "warn"],
                                 env=ENVIRONMENT))
        disk = self.tmp / "shared.raw"
        disk.write_bytes(load_clients.shared_bytes(0, SHARED_SIZE))
        server.push(disk, f"{load_clients.SHARED_REPO}:v1")
        digest = load_clients.digest_of(disk.read_bytes())
        clients = self.start_clients(server.port, NR_CLIENTS, "--shared", f"{digest}:{SHARED_SIZE}")
        memory, ends = [], time.monotonic() + SECONDS
        while time.monotonic() < ends:
            time.sleep(SECONDS / 12)
            for process in (*clients, server):
                process.check_running()
            memory.append(resident(server.pid) // MIB)
        said = self.end_clients(clients)
        memory.append(resident(server.pid) // MIB)
        print(f"{NR_CLIENTS} clients, {SECONDS} s: {said['requests']} requests; server's MiB: {memory}")
        self.assertGreater(said["requests"], NR_CLIENTS * 10)
        self.assertEqual(said["unanswered"], 0)
        self.assertEqual(server.http.get("/healthz").status, 200)
        self.assertGreater(self.check_blobs(server.store), 10)

    def test_killed_server(self):
        rng = seeded(self.id())
        port, store = free_port(), self.folder("store")

        def start():
            return self.own(Cairnd(self.folder("server"), store=store,
                                   arguments=["--listen", f"127.0.0.1:{port}", "--log-level", "warn"]))

        server = start()
        clients = self.start_clients(port, 32, "--outages")
        ends, nr_kills = time.monotonic() + SECONDS, 0
        while time.monotonic() < ends or nr_kills < 3:
            stored = names(store / "repos")
            wait_for(lambda: names(store / "repos") != stored, "a change")
            time.sleep(rng.random() * 0.3)  # somewhere in their midst
            for process in clients:
                process.check_running()
            server.kill()
            self.processes.remove(server)
            self.check_blobs(store)
            server = start()
            nr_kills += 1
        said = self.end_clients(clients)
        print(f"{nr_kills} kills, {said['requests']} requests, {said['unanswered']} without an answer")
        self.assertGreater(said["unanswered"], 0)
        self.assertGreater(self.check_blobs(store), 10)


if __name__ == "__main__":
    main()
