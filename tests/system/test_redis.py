#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The metadata cache that servers share in Redis: that it saves work, and that nothing that Redis does
or does not do makes a byte wrong, or a read slow."""

import functools
import itertools
import re
import shutil
import threading
import time

import qemu
from cairntest import CAIRND, Cairnd, Case, KIB, MIB, main, random_bytes, run, scaled, seeded, wait_for
from redis import Impostor, Redis

SLICE = 32 * MIB
SIZE = 8 * SLICE
DEPTH = 6
# Where the test is what Redis saves, a busy machine must not make it look as if it were down.
PATIENT = ("--redis-deadline", "1000")
SLOW = 5.0  # seconds for one small read, far more than any deadline here


class SharedCache(Case):
    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())
        self.top = self.make_chain()
        self.oracle = qemu.convert(self.top, self.tmp / "oracle.raw")

    def make_chain(self):
        backing, self.nr_slices = None, 0
        for ordinal in range(DEPTH):
            path = self.tmp / f"layer{ordinal}.qcow2"
            options = ["-b", backing, "-F", "qcow2"] if backing else []
            qemu.img("create", "-q", "-f", "qcow2", *options, path, str(SIZE))
            places = self.rng.sample(range(SIZE // (64 * KIB)), 24)
            qemu.io(path, *(f"write -q -P {self.rng.randrange(1, 256)} {place * 64}k 64k"
                            for place in places))
            self.nr_slices += len({place * 64 * KIB // SLICE for place in places})
            backing = path
        return backing

    def redis(self, name="redis", **options):
        return self.own(Redis(self.tmp / name, **options))

    def server(self, name, *arguments):
        """A cairnd on the one store of this test."""
        return self.own(Cairnd(self.folder(name), store=self.tmp / "store",
                               arguments=arguments))

    def forget(self, server):
        """A server that has just started."""
        server.stop()
        self.processes.remove(server)

    def metric(self, server, name, **labels):
        text = server.http.get("/metrics").body.decode()
        wanted = ",".join(f'{key}="{value}"' for key, value in labels.items())
        wanted = re.escape(name + (f"{{{wanted}}}" if wanted else ""))
        return float(re.search(rf"^{wanted} (\S+)$", text, re.M)[1])

    def assert_right(self, server):
        self.assertEqual(server.http.data("vm:v1"), self.oracle)

    def published(self, *arguments):
        """A server that has published the chain."""
        server = self.server("first", *arguments)
        server.push(self.top, "vm:v1")
        return server

    def filled(self, *nodes, arguments=()):
        """The same, once Redis holds what was published."""
        server = self.published("--redis", ",".join(node.address for node in nodes), *PATIENT,
                                *arguments)
        for kind, number in (("l1", DEPTH), ("l2", self.nr_slices)):
            wait_for(lambda k=kind, n=number: sum(len(node.keys(f"cairn:1:{k}:*")) for node in nodes)
                     == n, f"{number} values of kind {kind} in Redis")
        return server

    def without_index(self):
        """Nothing but Redis knows the index then."""
        shutil.rmtree(self.tmp / "store" / "index")

    # -- What it is for -------------------------------------------------------------------------------

    def test_second_server_reads_no_tables(self):
        redis = self.redis()
        self.filled(redis)
        self.without_index()
        second = self.server("second", "--redis", redis.address, *PATIENT)
        self.assert_right(second)
        self.assertEqual(self.metric(second, "cairn_index_builds_total"), 0)
        self.assertGreater(self.metric(second, "cairn_meta_cache_hits_total", tier="redis"), 0)
        self.assertEqual(self.metric(second, "cairn_meta_cache_bad_values_total", tier="redis"), 0)
        for tier in ("memory", "redis"):
            self.assertGreater(self.metric(second, "cairn_meta_cache_lookup_seconds_count", tier=tier), 0)

    def test_keys_spread_over_nodes(self):
        nodes = [self.redis(f"redis{i}") for i in range(3)]
        self.filled(*nodes)
        self.assertGreater(sum(bool(node.keys()) for node in nodes), 1)
        self.without_index()
        second = self.server("second", "--redis", ",".join(node.address for node in nodes), *PATIENT)
        self.assert_right(second)
        self.assertEqual(self.metric(second, "cairn_index_builds_total"), 0)

    def test_values_expire(self):
        redis = self.redis()
        self.filled(redis, arguments=("--redis-expiry", "1000"))
        for key in redis.keys():
            self.assertLessEqual(redis.ask("TTL", key), 1000)
            self.assertGreater(redis.ask("TTL", key), 0)

    def test_servers_that_miss_at_once_build_once(self):
        """As a rule: nobody waits for another server for much longer than a build takes, and on a busy
        machine that is a guess.  So one of a few tries must show it."""
        redis = self.redis()
        self.forget(self.filled(redis))
        wait_for(functools.partial(self.built_once, redis, itertools.count()),
                 "two servers to build an index once")

    def built_once(self, redis, tries):
        self.without_index()
        redis.ask("FLUSHALL")
        name = f"try{next(tries)}"
        servers = [self.server(f"{name}-{i}", "--redis", redis.address, *PATIENT) for i in range(2)]
        threads = [threading.Thread(target=server.http.data, args=("vm:v1",)) for server in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for server in servers:
            self.assert_right(server)
        builds = sum(self.metric(server, "cairn_index_builds_total") for server in servers)
        for server in servers:
            self.forget(server)
        self.assertGreaterEqual(builds, DEPTH)
        return builds <= DEPTH + 2

    # -- Values that were altered ---------------------------------------------------------------------

    def alter(self, value, other):
        kind = self.rng.randrange(6)
        if kind == 0:
            at = self.rng.randrange(len(value))
            return value[:at] + bytes([value[at] ^ 1 << self.rng.randrange(8)]) + value[at + 1:]
        if kind == 1:
            return value[:self.rng.randrange(len(value))]
        if kind == 2:
            return value + random_bytes(self.rng, self.rng.randrange(1, 40))
        if kind == 3:
            return random_bytes(self.rng, self.rng.randrange(200))
        return other if other != value else b""

    def test_altered_values_are_dropped_and_counted(self):
        redis = self.redis()
        self.forget(self.filled(redis))
        for _ in range(scaled(2, 4, 50)):
            self.without_index()
            keys = redis.keys("cairn:1:l*")
            values = [redis.ask("GET", key) for key in keys]
            for key, value in zip(keys, values):
                redis.ask("SET", key, self.alter(value, self.rng.choice(values)))
            server = self.server("server", "--redis", redis.address, *PATIENT)
            self.assert_right(server)
            self.assertEqual(self.metric(server, "cairn_meta_cache_hits_total", tier="redis"), 0)
            self.assertGreater(
                self.metric(server, "cairn_meta_cache_bad_values_total", tier="redis"), 0)
            wait_for(lambda: redis.keys("cairn:1:l1:*") and self.repaired(redis, keys, values),
                     "the right values in Redis again")
            self.forget(server)

    def repaired(self, redis, keys, values):
        """What was needed was put again; the L1s of shorter prefixes are not, of a chain that was built
        anew they are."""
        return redis.ask("GET", keys[0]) is not None and any(
            redis.ask("GET", key) == value for key, value in zip(keys, values))

    # -- A Redis that fails ---------------------------------------------------------------------------

    def assert_reads_on(self, server, seconds=1.0):
        """Small reads are right and quick all the while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            at = self.rng.randrange(SIZE - 4096)
            began = time.monotonic()
            answer = server.http.get("/v1/disks/vm:v1/data", Range=f"bytes={at}-{at + 4095}")
            self.assertLess(time.monotonic() - began, SLOW)
            self.assertEqual(answer.status, 206, answer.body[:300])
            self.assertEqual(answer.body, self.oracle[at:at + 4096])

    def cold(self, redis_address, *arguments):
        """A server that knows nothing yet: its first reads ask the tiers."""
        return self.server("cold", "--redis", redis_address, *arguments)

    def test_reads_go_on_while_redis_is_killed_and_back(self):
        redis = self.redis()
        self.forget(self.filled(redis))
        server = self.cold(redis.address)
        self.assert_reads_on(server)
        redis.kill()
        self.processes.remove(redis)
        self.assert_reads_on(server)
        self.assert_right(server)
        again = self.redis("again", port=redis.port)
        wait_for(lambda: self.refresh(server) and again.keys(), "Redis to be used again")

    def test_reads_go_on_while_redis_is_paused(self):
        redis = self.redis()
        self.forget(self.filled(redis))
        redis.ask("FLUSHALL")
        redis.pause()
        server = self.cold(redis.address)
        self.assert_reads_on(server, 2)
        self.assertGreater(self.metric(server, "cairn_redis_failures_total"), 0)
        redis.go_on()
        wait_for(lambda: self.refresh(server) and redis.keys(), "Redis to be used again")
        self.assert_right(server)

    def test_a_full_redis_costs_nothing_but_itself(self):
        redis = self.redis(arguments=("--maxmemory", "1", "--maxmemory-policy", "noeviction"))
        server = self.published("--redis", redis.address, *PATIENT)
        wait_for(lambda: self.metric(server, "cairn_redis_rejected_puts_total") > 0, "a refusal")
        self.assert_right(server)
        self.assert_reads_on(server)
        self.assertEqual(self.metric(server, "cairn_redis_breaker_opened_total"), 0)

    def test_a_redis_that_evicts(self):
        redis = self.redis(arguments=("--maxmemory", "2mb", "--maxmemory-policy", "allkeys-lru"))
        server = self.published("--redis", redis.address)
        self.assert_right(server)

    def test_impostors(self):
        self.forget(self.published())
        for answer in (None, b"\r\n", b"+OK\r\n", b"-ERR no\r\n", b":1\r\n" * 100, b"$-1\r\n",
                       b"*1000000000\r\n", b"$1000000000\r\n", b"*2\r\n*2\r\n*2\r\n", b"$5\r\nhello\r\n",
                       b"*-1\r\n", b"$-7\r\n", b"\0" * 5000, b"HTTP/1.1 400 Bad Request\r\n\r\n"):
            with self.subTest(answer=str(answer)[:40]):
                impostor = Impostor(answer)
                server = self.cold(impostor.address)
                self.assert_reads_on(server, 0.3)
                wait_for(lambda: impostor.nr_connections > 0, "the server to ask")
                self.forget(server)
                impostor.close()

    def test_nobody_at_the_address(self):
        server = self.published("--redis", "127.0.0.1:1,nowhere.invalid:6379")
        self.assert_right(server)
        self.assert_reads_on(server)

    # -- Sentinel -------------------------------------------------------------------------------------

    def test_sentinel_names_the_master(self):
        master = self.redis("master")
        replica = self.redis("replica", arguments=("--replicaof", "127.0.0.1", str(master.port)))
        sentinel = self.redis("sentinel", sentinel=(
            f"sentinel monitor cairn 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds cairn 500\nsentinel failover-timeout cairn 2000\n"))
        name = f"cairn@127.0.0.1:1,{sentinel.address}"
        server = self.server("first", "--redis-sentinel", name)
        wait_for(lambda: self.metric(server, "cairn_redis_refused_total") >= 0, "the server")
        server.push(self.top, "vm:v1")
        self.assert_right(server)
        wait_for(lambda: self.refresh(server) and master.keys("cairn:1:*"), "values at the master")
        wait_for(lambda: b"role:slave" in replica.ask("INFO", "replication")
                 and b"master_link_status:up" in replica.ask("INFO", "replication"), "the replica")
        master.kill()
        self.processes.remove(master)
        wait_for(lambda: b"role:master" in replica.ask("INFO", "replication"), "the failover", 60)
        replica.ask("FLUSHALL")
        wait_for(lambda: self.refresh(server) and replica.keys("cairn:1:*"),
                 "values at the new master", 60)

    def refresh(self, server):
        """Have the server put something: publish another chain."""
        name = f"{self.rng.randrange(1 << 30)}"
        path = self.tmp / f"{name}.qcow2"
        qemu.img("create", "-q", "-f", "qcow2", path, "64M")
        qemu.io(path, f"write -q -P {self.rng.randrange(1, 256)} {self.rng.randrange(900)}k 4k")
        server.push(path, f"vm:{name}")
        return True

    # -- Figures --------------------------------------------------------------------------------------

    def assert_family(self, name, kind, samples):
        """One family of Prometheus' text format, version 0.0.4; samples are (suffix, labels, value)."""
        series = [(suffix, labels) for suffix, labels, _ in samples]
        self.assertEqual(len(series), len(set(series)), f"{name}: one series twice")
        self.assertEqual({suffix for suffix, _, _ in samples},
                         {"_bucket", "_sum", "_count"} if kind == "histogram" else {""}, name)
        if kind == "counter":
            self.assertTrue(name.endswith("_total"), name)
        buckets = {}
        for suffix, labels, value in samples:
            if suffix == "_bucket":
                rest, bound = re.fullmatch(r'(.*?),?le="([^"]+)"', labels).groups()
                buckets.setdefault(rest, []).append((float(bound), value))
        for labels, of_labels in buckets.items():
            self.assertEqual(of_labels, sorted(of_labels), f"{name}: bounds and counts grow")
            self.assertEqual(of_labels[-1],
                             (float("inf"), next(v for s, l, v in samples if (s, l) == ("_count", labels))))

    def test_metrics_are_valid(self):
        redis = self.redis()
        server = self.filled(redis)
        self.assert_right(server)
        answer = server.http.get("/metrics")
        self.assertEqual(answer.headers["Content-Type"], "text/plain; version=0.0.4; charset=utf-8")
        text = answer.body.decode()
        self.assertTrue(text.endswith("\n"))
        families = re.split(r"^# HELP ", text, flags=re.M)
        self.assertEqual(families[0], "")
        names = set()
        for family in families[1:]:
            head = re.match(r"(\w+) [^\\\n]+\n# TYPE \1 (counter|gauge|histogram)\n", family)
            self.assertIsNotNone(head, family)
            name, kind = head.groups()
            self.assertNotIn(name, names)
            names.add(name)
            samples = []
            for line in family[head.end():].splitlines():
                sample = re.fullmatch(name + r'(_bucket|_sum|_count|)(?:\{((?:\w+="[^"\\]*",?)+)\})? '
                                      r"(\d+(?:\.\d+)?)", line)
                self.assertIsNotNone(sample, line)
                samples.append((sample[1], sample[2] or "", float(sample[3])))
            self.assert_family(name, kind, samples)

    # -- Misuse ---------------------------------------------------------------------------------------

    def test_addresses_that_are_none(self):
        for option, value, words in (
                ("--redis", "localhost", "host:port"), ("--redis", "localhost:99999", "host:port"),
                ("--redis", "a:1,,b:2", "host:port"), ("--redis", ":6379", "host:port"),
                ("--redis-sentinel", "localhost:26379", "name@host:port"),
                ("--redis-sentinel", "@localhost:26379", "name@host:port")):
            with self.subTest(value=value):
                result = run(CAIRND, "--store", f"fs:{self.tmp / 'other'}", "--listen",
                             "127.0.0.1:0", option, value, code=2)
                self.assertIn(words.encode(), result.stderr)


if __name__ == "__main__":
    main()
