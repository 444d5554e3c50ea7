# SPDX-License-Identifier: Apache-2.0
"""Deep chains, made fast: layers are written here byte for byte as QEMU would lay them out, instead of
by thousands of runs of qemu-img.

The base is full; each layer above overwrites some clusters of it, all written at once (*dense*: one
run of 16 MiB) or here and there (*sparse*: 32 clusters of 64 KiB).  A shallower chain of the same kind
is the lower part of a deeper one.  Every cluster begins with the number of the layer that wrote it and
its own number in guest space, so that whoever reads can tell whether it got what the chain shows.
"""

import hashlib
import json
import mmap
import os
import random
import struct

from cairntest import MIB, Parallel
from scattered_image import CLUSTER, CLUSTER_BITS, Writer

BACKING_FORMAT = 0xE2792ACA
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
LAYER_TYPE = "application/vnd.cairn.layer.v1.qcow2"
EMPTY_CONFIG = b"{}"
STAMP = struct.Struct("<QQ")
CLUSTERS = {"sparse": 32, "dense": 16 * MIB // CLUSTER}  # of a layer
REPO = "bench"


class LayerWriter(Writer):
    """One layer, with its clusters' bytes and the name of what is below."""

    body = random.Random(1).randbytes(CLUSTER - STAMP.size)

    def __init__(self, virtual_size, number, backing=None):
        super().__init__(virtual_size, extended_l2=False)
        self.number, self.backing = number, backing
        self.data = []  # (host cluster, guest cluster)

    def put_data(self, guest_cluster):
        self.put(guest_cluster)
        self.data.append((self.next - 1, guest_cluster))

    def header(self):
        if not self.backing:
            return super().header()
        head = bytearray(super().header() + struct.pack(">II8s8x", BACKING_FORMAT, 5, b"qcow2"))
        struct.pack_into(">QI", head, 8, len(head), len(self.backing))
        return bytes(head) + self.backing.encode()

    def write(self, path):
        super().write(path)
        with open(path, "r+b", buffering=0) as out:
            for host, guest in self.data:
                os.pwritev(out.fileno(), (STAMP.pack(self.number, guest), self.body),
                           host << CLUSTER_BITS)


class DeepChain:
    """The layers of one kind, published as `bench:<kind>-<depth>` at several depths.  Files of the
    lower local_depth layers stay in the folder, for QEMU."""

    def __init__(self, folder, kind, virtual_size, local_depth):
        self.folder, self.kind, self.virtual_size = folder, kind, virtual_size
        self.local_depth = local_depth
        self.nr_clusters = virtual_size // CLUSTER
        self.layers = []  # descriptors, base first

    def file(self, number):
        return self.folder / f"{self.kind}-{number}.qcow2"

    def tag(self, depth):
        return f"{self.kind}-{depth}"

    def ref(self, depth):
        return f"{REPO}:{self.tag(depth)}"

    def clusters(self, number):
        """The guest clusters that a layer holds, in the order in which they were written."""
        if number == 0:
            return range(self.nr_clusters)
        generator = random.Random(f"{self.kind} {number}")
        wanted = min(CLUSTERS[self.kind], self.nr_clusters)
        if self.kind == "dense":
            first = generator.randrange(self.nr_clusters - wanted + 1)
            return range(first, first + wanted)
        return generator.sample(range(self.nr_clusters), wanted)

    def stamps(self, depth):
        """How each cluster begins, as seen at that depth."""
        owners = {}
        for number in range(depth):
            owners.update(dict.fromkeys(self.clusters(number), number))
        return {cluster: STAMP.pack(number, cluster) for cluster, number in owners.items()}

    def make_layer(self, number):
        layer = LayerWriter(self.virtual_size, number,
                            self.file(number - 1).name if number else None)
        for guest_cluster in self.clusters(number):
            layer.put_data(guest_cluster)
        layer.write(self.file(number))

    def upload_layer(self, server, number):
        """Make a layer and bring it to the server; its descriptor."""
        self.make_layer(number)
        with open(self.file(number), "rb") as file, \
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, \
                memoryview(mapped) as content:
            digest = upload(server, content)
            size = len(content)
        if number >= self.local_depth:
            self.file(number).unlink()
        return {"mediaType": LAYER_TYPE, "digest": digest, "size": size}

    def publish(self, server, depth):
        """Make and upload what is missing, and put the manifest."""
        first = len(self.layers)
        self.layers += [None] * (depth - first)

        def fill(number):
            self.layers[number] = self.upload_layer(server, number)

        Parallel(4).each(fill, range(first, depth))
        config = {"mediaType": "application/vnd.oci.empty.v1+json",
                  "digest": upload(server, EMPTY_CONFIG), "size": len(EMPTY_CONFIG)}
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config,
            "artifactType": "application/vnd.cairn.disk.v1", "layers": self.layers[:depth]})
        must_be_201(server.http.request("PUT", f"/v2/{REPO}/manifests/{self.tag(depth)}", manifest,
                                        {"Content-Type": MANIFEST_TYPE}), self.tag(depth))


def upload(server, content):
    """Its digest."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    must_be_201(server.http.upload(REPO, content, digest), digest)
    return digest


def must_be_201(answer, what):
    if answer.status != 201:
        raise SystemExit(f"{what}: status {answer.status}: {answer.body[:2000]}")
