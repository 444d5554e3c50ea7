# SPDX-License-Identifier: Apache-2.0
"""QEMU as oracle: what qemu-img says of an image, and chains made at random by qemu-img and
qemu-io.

QEMU 7.2 has faults of its own that the generator keeps away from: compressed writes go into
clusters that the layer has not touched, in qemu-io runs that do nothing else.  `qemu-img map`
shows where the file system has holes in raw files and preallocated clusters, so every file is
made free of holes before it is asked.
"""

import json
import os
import pathlib

from cairntest import KIB, MIB, run

SECTOR = 512


# -- Questions ------------------------------------------------------------------------------------

def img(*arguments, **options):
    return run("qemu-img", *arguments, **options)


def io(image, *commands, fmt="qcow2", timeout=120):
    """qemu-io commands in one run.  It prints failures of commands and goes on: those count too.
    A json: image says its format itself.  Nothing here outlives a power cut: flushes are skipped."""
    options = ["-t", "unsafe", *(word for command in commands for word in ("-c", command))]
    if not str(image).startswith("json:"):
        options += ["-f", fmt]
    result = run("qemu-io", *options, image, timeout=timeout)
    said = result.stdout + result.stderr
    if b"failed" in said or b"rror" in said:
        raise AssertionError(result.describe())
    return result


def convert(image, raw, fmt=None):
    """The guest's bytes, all of them."""
    img("convert", *(("-f", fmt) if fmt else ()), "-O", "raw", image, raw)
    return pathlib.Path(raw).read_bytes()


def extent_map(image):
    return whole_sectors(json.loads(img("map", "--output=json", image).stdout))


def whole_sectors(extents):
    """The zeros that QEMU shows behind a raw base that ends within a sector, up to the sector's end, are
    counted to the data before them: extents are in sectors."""
    for before, after in zip(extents, extents[1:]):
        cut = -after["start"] % SECTOR
        if cut and after["zero"] and after["depth"] == before["depth"] and after["length"] >= cut:
            before["length"] += cut
            after["start"] += cut
            after["length"] -= cut
            if "offset" in after:
                after["offset"] += cut
    return [extent for extent in extents if extent["length"]]


def dirty_ranges(image, bitmap):
    """(start, length) of what a persistent bitmap has as dirty."""
    said = run("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{bitmap}", "--", "[", "qemu-nbd", "-r",
               "-f", "qcow2", "-B", bitmap, image, "]").json()
    merged = []
    for start, length in ((e["offset"], e["length"]) for e in said if e["type"] == 1):
        if merged and sum(merged[-1]) == start:
            start, length = merged[-1][0], merged.pop()[1] + length
        merged.append((start, length))
    return merged


def check_active(path, leaks_allowed=False):
    """An active layer's backing name opens nowhere, so QEMU is told not to look for it."""
    node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": None}
    check(f"json:{json.dumps(node)}", leaks_allowed)


def check(image, leaks_allowed=False):
    """qemu-img check: exit code 3 is leaks only."""
    result = img("check", image, code=None)
    if result.code not in ((0, 3) if leaks_allowed else (0,)):
        raise AssertionError(result.describe())


def compare(a, b, *options, **run_options):
    img("compare", *options, a, b, **run_options)


def merge_extents(extents):
    """Entries of a map with neighbours merged wherever they say the same and run on.  Where no
    layer has anything there is no offset: QEMU gives one for unallocated subclusters whose cluster
    has a place in the file all the same."""
    merged = []
    for entry in extents:
        now = {key: entry.get(key) for key in
               ("start", "length", "depth", "present", "zero", "data", "offset")}
        if not now["present"]:
            now["offset"] = None
        if merged and continues(merged[-1], now):
            merged[-1]["length"] += now["length"]
        else:
            merged.append(now)
    return merged


def continues(before, after):
    if before["start"] + before["length"] != after["start"]:
        return False
    if any(before[key] != after[key] for key in ("depth", "present", "zero", "data")):
        return False
    if before["offset"] is None or after["offset"] is None:
        return before["offset"] is after["offset"]
    return before["offset"] + before["length"] == after["offset"]


def first_extent_difference(ours, theirs):
    ours, theirs = merge_extents(ours), merge_extents(theirs)
    for ordinal, (a, b) in enumerate(zip(ours, theirs)):
        if a != b:
            return f"extent {ordinal}: cairnd {a}, qemu-img {b}"
    if len(ours) != len(theirs):
        return f"cairnd has {len(ours)} extents, qemu-img {len(theirs)}"
    return None


def first_depth_difference(a, b):
    """Where two maps say that different layers answer; what kind of extent it is does not count."""
    def depths(extents):
        return merge_extents([dict(entry, zero=False, data=True, offset=None) for entry in extents])
    return next((f"{x} and {y}" for x, y in zip(depths(a), depths(b)) if x != y), None)


def without_holes(path):
    """Let the file system store every byte of a file."""
    path = pathlib.Path(path)
    copy = path.with_suffix(".full")
    run("cp", "--sparse=never", path, copy)
    os.replace(copy, path)


# -- Chains made at random ------------------------------------------------------------------------

class Layer:
    """How one layer is to be made."""

    def __init__(self, rng, size, is_base):
        self.size = size
        self.raw = is_base and rng.random() < 0.2
        self.version = rng.choice((2, 3, 3, 3))
        self.cluster = 1 << rng.choice((9, 10, 11, 12, 13, 14, 15, 16, 16, 17, 18, 19, 20, 21))
        self.extended = self.version == 3 and self.cluster >= 16 * KIB and rng.random() < 0.4
        self.zstd = self.version == 3 and rng.random() < 0.4
        self.refcount_bits = rng.choice((1, 2, 4, 8, 16, 16, 32, 64)) if self.version == 3 else 16
        self.lazy = self.version == 3 and rng.random() < 0.2
        self.preallocation = rng.choice(("off",) * 6 + ("metadata", "full")) if is_base else "off"
        self.snapshot = self.refcount_bits > 4 and rng.random() < 0.2
        self.bitmap = self.version == 3 and rng.random() < 0.2

    def options(self):
        words = [f"compat={'0.10' if self.version == 2 else '1.1'}",
                 f"cluster_size={self.cluster}", f"preallocation={self.preallocation}"]
        if self.version == 3:
            words += [f"refcount_bits={self.refcount_bits}",
                      f"extended_l2={'on' if self.extended else 'off'}",
                      f"compression_type={'zstd' if self.zstd else 'zlib'}",
                      f"lazy_refcounts={'on' if self.lazy else 'off'}"]
        return ",".join(words)

    def describe(self):
        if self.raw:
            return f"raw {self.size}"
        return (f"v{self.version} size={self.size} {self.options()}"
                f"{' snapshot' if self.snapshot else ''}{' bitmap' if self.bitmap else ''}")


class RandomChain:
    """A chain of 1 to 6 layers in a folder; .top is the file to open, .layers all, base first."""

    SIZE_LIMITS = (MIB, 4 * MIB, 16 * MIB, 64 * MIB)

    def __init__(self, rng, folder):
        self.rng, self.folder = rng, pathlib.Path(folder)
        self.layers, self.plans = [], []
        size = self.random_size(SECTOR)
        for ordinal in range(rng.randint(1, 6)):
            plan = Layer(rng, size, ordinal == 0)
            self.plans.append(plan)
            self.make_raw(plan) if plan.raw else self.make_qcow2(plan, ordinal)
            size = self.next_size(size)
        for layer in self.layers:
            without_holes(layer)
        self.top = self.layers[-1]
        self.top_format = "raw" if self.plans[-1].raw else "qcow2"

    def describe(self):
        return "\n".join(f"  {path.name}: {plan.describe()}"
                         for path, plan in zip(self.layers, self.plans))

    def random_size(self, unit):
        limit = self.rng.choice(self.SIZE_LIMITS)
        return self.rng.randrange(1, limit // unit + 1) * unit

    def next_size(self, size):
        """As often as not the same; else longer or shorter than the layer beneath."""
        if self.rng.random() < 0.5:
            return size
        factor = self.rng.uniform(0.3, 1.6)
        return min(max(int(size * factor) // SECTOR, 1) * SECTOR, self.SIZE_LIMITS[-1])

    def source(self, ordinal):
        """A file of bytes to write: no two sectors alike, half of them compressible."""
        path = self.folder / f"source{ordinal}"
        blocks = []
        for number in range(self.rng.randint(3, 40)):
            if self.rng.random() < 0.5:
                blocks.append(self.rng.randbytes(SECTOR))
            else:
                blocks.append((b"%08x" % self.rng.getrandbits(32) + b"%08d" % number) * 32)
        path.write_bytes(b"".join(blocks))
        return path

    def make_raw(self, plan):
        path = self.folder / "base.raw"
        with open(path, "wb") as out:
            out.truncate(plan.size)
        self.layers.append(path)
        io(path, *self.plain_writes(plan, self.source(0)), fmt="raw")

    def make_qcow2(self, plan, ordinal):
        path = self.folder / f"layer{ordinal}.qcow2"
        backing = []
        if ordinal:
            below = self.layers[-1]
            backing = ["-u", "-b", below.name, "-F", "raw" if self.plans[-2].raw else "qcow2"]
        img("create", "-q", "-f", "qcow2", "-o", plan.options(), *backing, path, plan.size)
        self.layers.append(path)
        self.fill(path, plan, self.source(ordinal))

    def fill(self, path, plan, source):
        if plan.bitmap:
            img("bitmap", "--add", "-g", "64k", path, "bitmap0")
        compressed = self.compressed_writes(plan, source)
        if compressed:
            io(path, *compressed)
        if plan.snapshot:
            img("snapshot", "-c", "before", path)
        for _ in range(self.rng.randint(1, 2)):
            io(path, *self.plain_writes(plan, source))

    def compressed_writes(self, plan, source):
        """Distinct whole clusters of a layer that has nothing yet."""
        clusters = plan.size // plan.cluster
        if not clusters or plan.preallocation != "off" or self.rng.random() < 0.4:
            return []
        chosen = self.rng.sample(range(clusters), min(clusters, self.rng.randint(1, 12)))
        return [f"write -q -c -s {source} {number * plan.cluster} {plan.cluster}"
                for number in chosen]

    def plain_writes(self, plan, source):
        commands = []
        for _ in range(self.rng.randint(2, 16)):
            start, length = self.random_range(plan)
            kind = self.rng.choice(("data",) * 5 + ("zero", "zero unmap", "discard"))
            commands.append({
                "data": f"write -q -s {source} {start} {length}",
                "zero": f"write -q -z {start} {length}",
                "zero unmap": f"write -q -z -u {start} {length}",
                "discard": f"discard -q {start} {length}",
            }[kind])
        return commands

    def random_range(self, plan):
        """Sector-aligned always, cluster-aligned often."""
        unit = self.rng.choice((SECTOR, SECTOR, 4 * KIB, plan.cluster))
        units = plan.size // unit
        if not units:
            unit, units = SECTOR, plan.size // SECTOR
        start = self.rng.randrange(units)
        length = min(units - start, self.rng.randint(1, max(1, 2 * MIB // unit)),
                     self.rng.randint(1, 64))
        return start * unit, length * unit
