#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Programs that know nothing of Cairn, unmodified, on its HTTP data, its registry API and its NBD
socket."""

import json
import re

import qemu
from cairntest import Case, KIB, MIB, first_difference, main, run, seeded, wait_for


class StockClients(Case):
    def setUp(self):
        super().setUp()
        self.server = self.cairnd()
        self.chain = self.make_chain()
        self.expected = qemu.convert(self.chain, self.tmp / "oracle.raw")
        self.server.push(self.chain, "vm:v1")
        self.data_url = f"{self.server.url}/v1/disks/vm:v1/data"

    def make_chain(self):
        """Three layers with data, zeros, holes and compressed clusters in them."""
        rng = seeded(self.id())
        source = self.tmp / "source"
        source.write_bytes(rng.randbytes(3 * MIB) + b"cairn" * 100 * KIB)
        qemu.img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", self.tmp / "a.qcow2",
                 48 * MIB)
        qemu.io(self.tmp / "a.qcow2", f"write -q -c -s {source} 0 4M",
                f"write -q -c -s {source} 33M 1M")
        qemu.io(self.tmp / "a.qcow2", f"write -q -s {source} 12M 7M")
        for below, name, commands in (
                ("a", "b", (f"write -q -s {source} 1M 300k", "write -q -z 13M 2M")),
                ("b", "c", (f"write -q -s {source} 20500k 1M", "write -q -P 7 47M 1M"))):
            path = self.tmp / f"{name}.qcow2"
            qemu.img("create", "-q", "-f", "qcow2", "-b", f"{below}.qcow2", "-F", "qcow2", path)
            qemu.io(path, *commands)
        return path

    def assert_same(self, path):
        self.assertIsNone(first_difference(path.read_bytes(), self.expected))

    # -- HTTP -------------------------------------------------------------------------------------

    def test_qemu_img_reads_http(self):
        info = qemu.img("info", "--output=json", "-f", "raw", self.data_url).json()
        self.assertEqual(info["virtual-size"], len(self.expected))
        # One read at a time: QEMU 7.2's HTTP driver loses one of several, whoever serves.
        qemu.img("convert", "-m", "1", "-f", "raw", "-O", "raw", self.data_url, self.tmp / "http.raw")
        self.assert_same(self.tmp / "http.raw")

    def test_nbdkit_curl_reads_http(self):
        copy = self.tmp / "curl.raw"
        run("nbdkit", "-U", "-", "curl", self.data_url, "--run", f'nbdcopy "$uri" {copy}')
        self.assert_same(copy)

    def test_curl_ranges(self):
        for first, last in ((0, 0), (511, 513), (MIB - 7, MIB + 9), (0, len(self.expected) - 1),
                            (12 * MIB + 5, 20 * MIB)):
            body = run("curl", "-sS", "--fail", "-r", f"{first}-{last}", self.data_url).stdout
            self.assertIsNone(first_difference(body, self.expected[first:last + 1]))
        body = run("curl", "-sS", "--fail", "-r", "-1000", self.data_url).stdout
        self.assertEqual(body, self.expected[-1000:])
        body = run("curl", "-sS", "--fail", "-r", f"{47 * MIB}-", self.data_url).stdout
        self.assertEqual(body, self.expected[47 * MIB:])
        past = run("curl", "-sS", "-o", self.tmp / "body", "-w", "%{http_code}", "-r",
                   f"{len(self.expected)}-", self.data_url)
        self.assertEqual(past.stdout, b"416")

    def test_curl_head_and_etag(self):
        headers = run("curl", "-sS", "--fail", "-I", self.data_url).stdout.decode().lower()
        self.assertIn(f"content-length: {len(self.expected)}\r\n", headers)
        self.assertIn("accept-ranges: bytes\r\n", headers)
        chain_id = self.server.http.get("/v1/disks/vm:v1").json()["chainId"]
        etag = re.search(r'^etag: "(.*)"\r$', headers, re.M)[1]
        self.assertEqual(etag, chain_id)
        same = run("curl", "-sS", "-o", self.tmp / "body", "-w", "%{http_code}", "-H",
                   f'If-None-Match: "{etag}"', self.data_url)
        self.assertEqual(same.stdout, b"304")

    # -- NBD --------------------------------------------------------------------------------------

    def test_nbdcopy_and_nbdinfo(self):
        disk = self.attach(self.server, "vm:v1", "--read-only")
        info = run("nbdinfo", "--no-content", "--json", disk.uri).json()["exports"][0]
        self.assertEqual(info["export-size"], len(self.expected))
        self.assertTrue(info["is_read_only"])
        run("nbdcopy", disk.uri, self.tmp / "nbd.raw")
        self.assert_same(self.tmp / "nbd.raw")
        extents = run("nbdinfo", "--map", "--json", disk.uri).json()
        self.assertEqual(sum(extent["length"] for extent in extents), len(self.expected))
        for extent in extents:
            if extent["type"] & 2:
                start, end = extent["offset"], extent["offset"] + extent["length"]
                self.assertFalse(any(self.expected[start:end]), f"not zero: {extent}")

    def test_nbdcopy_writes(self):
        disk = self.attach(self.server, "vm:v1", "--disk", self.tmp / "disk")
        image = self.tmp / "new.raw"
        image.write_bytes(seeded("nbdcopy").randbytes(20 * MIB) + bytes(28 * MIB))
        run("nbdcopy", "--flush", image, disk.uri)
        run("nbdcopy", disk.uri, self.tmp / "back.raw")
        self.assertIsNone(first_difference((self.tmp / "back.raw").read_bytes(),
                                           image.read_bytes()))

    def test_fio_verifies_over_nbd(self):
        disk = self.attach(self.server, "vm:v1", "--disk", self.tmp / "disk")
        result = run("fio", "--name=verify", "--ioengine=nbd", f"--uri={disk.uri}",
                     "--rw=randwrite", "--bsrange=512-64k", "--blockalign=512", "--size=32M",
                     "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
                     "--verify_backlog=256", "--randrepeat=1", "--output-format=json", cwd=self.tmp)
        job = json.loads(result.stdout[result.stdout.index(b"{"):])["jobs"][0]
        self.assertEqual(job["error"], 0)
        self.assertGreater(job["write"]["total_ios"], 100)
        self.assertGreater(job["read"]["total_ios"], 100)

    # -- Registry ---------------------------------------------------------------------------------

    def skopeo(self, *arguments):
        policy = self.tmp / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        run("skopeo", "--policy", policy, "copy", "--preserve-digests", *arguments,
            env={"HOME": str(self.tmp), "XDG_RUNTIME_DIR": str(self.tmp)})

    def test_skopeo_copies_out_and_back(self):
        registry = f"docker://127.0.0.1:{self.server.port}"
        self.skopeo("--src-tls-verify=false", f"{registry}/vm:v1", f"oci:{self.tmp}/oci:v1")
        self.skopeo("--dest-tls-verify=false", f"oci:{self.tmp}/oci:v1", f"{registry}/copy/vm:v9")
        original = self.server.http.get("/v2/vm/manifests/v1")
        copy = self.server.http.get("/v2/copy/vm/manifests/v9")
        self.assertEqual(copy.headers["Docker-Content-Digest"],
                         original.headers["Docker-Content-Digest"])
        self.assertEqual(copy.body, original.body)
        self.assertIsNone(first_difference(self.server.http.data("copy/vm:v9"), self.expected))

    def test_skopeo_to_a_server_that_has_nothing(self):
        """What skopeo carried to another server is a disk there."""
        other = self.cairnd("other")
        self.skopeo("--src-tls-verify=false", "--dest-tls-verify=false",
                    f"docker://127.0.0.1:{self.server.port}/vm:v1",
                    f"docker://127.0.0.1:{other.port}/moved:v1")
        wait_for(other.healthy, "the other server")
        self.assertIsNone(first_difference(other.http.data("moved:v1"), self.expected))


if __name__ == "__main__":
    main()
