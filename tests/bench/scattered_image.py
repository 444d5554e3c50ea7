# SPDX-License-Identifier: Apache-2.0
"""Writes qcow2 images of any size at once, tables first-hand and data never: what opening, mapping and
checking cost depends on the tables alone.

Host clusters are handed out in the order in which the guest wrote, L2 tables and refcount blocks where
they become due, as QEMU hands them out.  Where the disk has the room, space for the data is allocated
without being written: qemu-img map takes an image full of holes for a preallocated one and looks for
each of them in the file system, which is not to be measured here.
"""

import array
import os
import random
import struct
import sys

COPIED = 1 << 63
CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
REFBLOCK_CLUSTERS = CLUSTER // 2  # refcounts of 16 bits
EXTENDED_L2 = 1 << 4
HEADER_LENGTH = 112
SUBCLUSTERS = 32


def big_endian(typecode, values):
    words = array.array(typecode, values)
    if sys.byteorder == "little":
        words.byteswap()
    return words.tobytes()


class Writer:
    """An image in the making: what is where, until write() puts it into a file."""

    def __init__(self, virtual_size, extended_l2):
        self.virtual_size, self.extended_l2 = virtual_size, extended_l2
        self.words = 2 if extended_l2 else 1  # of an L2 entry
        self.l2_entries = CLUSTER // (8 * self.words)
        self.l1_size = -(-virtual_size // (CLUSTER * self.l2_entries))
        self.reftable, self.l1 = 1, 2  # host clusters; the header has 0
        self.next = self.l1 + -(-self.l1_size * 8 // CLUSTER)
        self.refblocks = [self.next]
        self.next += 1
        self.tables = {}  # L1 index: (host cluster, entries)

    def allocate(self):
        """The next host cluster, behind the refcount block that counts it."""
        if self.next // REFBLOCK_CLUSTERS == len(self.refblocks):
            self.refblocks.append(self.next)
            self.next += 1
        self.next += 1
        return self.next - 1

    def put(self, guest_cluster, bitmap=(1 << SUBCLUSTERS) - 1):
        l1_index, i = divmod(guest_cluster, self.l2_entries)
        if l1_index not in self.tables:
            self.tables[l1_index] = (self.allocate(), array.array("Q", bytes(CLUSTER)))
        table = self.tables[l1_index][1]
        table[i * self.words] = self.allocate() << CLUSTER_BITS | COPIED
        if self.extended_l2:
            table[i * self.words + 1] = bitmap

    def header(self):
        return struct.pack(
            ">4sIQIIQIIQQIIQQQQII8x", b"QFI\xfb", 3, 0, 0, CLUSTER_BITS, self.virtual_size, 0,
            self.l1_size, self.l1 << CLUSTER_BITS, self.reftable << CLUSTER_BITS, 1, 0, 0,
            EXTENDED_L2 if self.extended_l2 else 0, 0, 0, 4, HEADER_LENGTH)

    def write(self, path):
        size = self.next << CLUSTER_BITS
        l1 = [self.tables[i][0] << CLUSTER_BITS | COPIED if i in self.tables else 0
              for i in range(self.l1_size)]
        with open(path, "wb") as out:
            out.truncate(size)
            room = os.statvfs(path)
            if 2 * size < room.f_bavail * room.f_frsize:
                os.posix_fallocate(out.fileno(), 0, size)

            def put(cluster, data):
                os.pwrite(out.fileno(), data, cluster << CLUSTER_BITS)

            put(0, self.header())
            put(self.reftable, big_endian("Q", (block << CLUSTER_BITS for block in self.refblocks)))
            put(self.l1, big_endian("Q", l1))
            for host, entries in self.tables.values():
                put(host, big_endian("Q", entries))
            for i, block in enumerate(self.refblocks):
                used = min(self.next - i * REFBLOCK_CLUSTERS, REFBLOCK_CLUSTERS)
                put(block, struct.pack(">H", 1) * used)


def some_subclusters(generator):
    """The bitmap of a cluster of which one run of subclusters was written."""
    first = generator.randrange(SUBCLUSTERS)
    end = generator.randrange(first, SUBCLUSTERS) + 1
    return (1 << end) - (1 << first)


def write_scattered(path, virtual_size, nr_clusters, extended_l2=False, seed=1):
    """Clusters at random, written in random order."""
    generator = random.Random(seed)
    image = Writer(virtual_size, extended_l2)
    for guest_cluster in generator.sample(range(virtual_size // CLUSTER), nr_clusters):
        if extended_l2:
            image.put(guest_cluster, some_subclusters(generator))
        else:
            image.put(guest_cluster)
    image.write(path)


def write_dense(path, virtual_size):
    """Every cluster, written in order."""
    image = Writer(virtual_size, False)
    for guest_cluster in range(virtual_size // CLUSTER):
        image.put(guest_cluster)
    image.write(path)
