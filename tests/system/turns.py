# SPDX-License-Identifier: Apache-2.0
"""An active layer over a chain that QEMU made, on which we and QEMU work in turns, beside a mirror
of what it must hold.

A turn of ours is one run of active_script, a turn of QEMU's one of qemu-io and what goes on around
it.  After every turn the image passes `qemu-img check`, and the content and the map are the same as
QEMU and as we see them.
"""

import json
import signal

import qemu
from cairntest import BUILD, CAIRN, KIB, MIB, first_difference, run
from mirror import Mirror, SECTOR

ACTIVE_SCRIPT = BUILD / "bin" / "active_script"
SIZE_MAX = 16 * MIB
OP_MAX = 512 * KIB
UNKNOWN_SIZE = (1 << 64) - 1
KINDS = {"0": (True, False), "1": (True, True), "2": (False, True)}  # zeros?, a host offset?


class Beneath(qemu.RandomChain):
    SIZE_LIMITS = (MIB, 4 * MIB, SIZE_MAX)


class Turns:
    def __init__(self, rng, folder, log):
        self.rng, self.folder, self.log = rng, folder, log
        self.image, self.nr_turns = folder / "active.qcow2", 0
        self.top, self.top_format, self.beneath = None, None, "-"  # the chain's, and its content
        if rng.random() < 0.75:
            chain = Beneath(rng, folder)
            log.append(chain.describe())
            self.top, self.top_format = chain.top, chain.top_format
        self.sources = [self.source(number) for number in range(4)]
        self.start()

    def start(self):
        """A new active layer over what there is."""
        size = self.rng.randrange(1, self.rng.choice((MIB, SIZE_MAX)) // SECTOR) * SECTOR
        if self.top:
            self.beneath = self.folder / "beneath.raw"
            size = self.rng.choice((size, self.look_beneath()))
        self.cluster = 1 << self.rng.randint(14, 21)
        self.mirror = Mirror(self.beneath_bytes(size))
        self.ours([f"create {size} {self.cluster.bit_length() - 1}"])

    def stack(self):
        """What there is becomes a layer of the chain, as it is or sealed, and gets a new one."""
        layer, copy = self.folder / f"layer-of-turn{self.nr_turns}.qcow2", self.copy_for_qemu()
        compression = self.rng.choice((None, "none", "zlib", "zstd"))
        self.log.append(f"{layer.name}: seal --compress {compression}")
        if compression:
            seal(copy, layer, compression)
        else:
            copy.rename(layer)
        self.image.unlink()
        self.top, self.top_format = layer, "qcow2"
        self.start()

    # -- What lies beneath, and what is written ----------------------------------------------------

    def look_beneath(self):
        """The chain's content as QEMU reads it, for our copy-on-write; its size."""
        return len(qemu.convert(self.top, self.beneath, self.top_format))

    def beneath_bytes(self, size):
        content = self.beneath.read_bytes()[:size] if self.top else b""
        return content + bytes(size - len(content))

    def source(self, number):
        path = self.folder / f"written{number}"
        path.write_bytes(self.rng.randbytes(self.rng.randint(1, 9000)))
        return path

    def node(self, backing=True):
        """The image as QEMU can open it: its backing name leads nowhere."""
        def of(driver, path):
            return {"driver": driver, "file": {"driver": "file", "filename": str(path)}}
        below = of(self.top_format, self.top) if self.top and backing else None
        return "json:" + json.dumps(dict(of("qcow2", self.image), backing=below))

    @property
    def size(self):
        return len(self.mirror.now)

    @property
    def beneath_size(self):
        return self.beneath.stat().st_size if self.top else 0

    # -- Random operations, noted in the mirror --------------------------------------------------

    def random_range(self):
        unit = self.rng.choice((1, SECTOR, SECTOR, 4 * KIB, self.cluster // 32, self.cluster))
        limit = self.size if self.rng.random() < 0.6 else self.size // 8 + 1
        start = self.rng.randrange(limit) // unit * unit
        length = min(self.rng.randint(1, 40) * unit, self.rng.choice((OP_MAX, 3 * self.cluster)),
                     self.size - start)
        if self.rng.random() < 0.15:
            length = min(self.size - start, 8 * self.cluster)  # often to the end of the disk
        return start, length

    def random_size(self):
        """Of a resize, more often up than down."""
        size = int(self.size * self.rng.uniform(0.5, 2)) // SECTOR * SECTOR
        return min(max(size, SECTOR), SIZE_MAX)

    def whole_clusters(self, start, length):
        """What a discard reaches; the disk's last cluster counts as whole."""
        first, end = -(-start // self.cluster) * self.cluster, start + length
        if end < self.size:
            end -= end % self.cluster
        return first, max(end - first, 0)

    def write(self, start, length):
        source = self.rng.choice(self.sources)
        data = source.read_bytes()
        self.mirror.will_change(start, (data * (length // len(data) + 1))[:length])
        return source

    def zero(self, start, length):
        if length > 0:
            self.mirror.will_change(start, bytes(length))

    # -- Our turn --------------------------------------------------------------------------------

    def script(self, lines, code=0):
        """One run of active_script; what it read, and what it said."""
        out = self.folder / "out"
        result = run(ACTIVE_SCRIPT, self.image, self.beneath, out, code=code,
                     stdin="".join(f"{line}\n" for line in lines).encode())
        return out.read_bytes(), result

    def our_operation(self, reads):
        kind = self.rng.choices(("write", "read", "zero", "unmap", "discard", "flush", "resize"),
                                (12, 3, 2, 2, 2, 1, 0.4))[0]
        start, length = self.random_range()
        if kind == "flush":
            self.mirror.flushed()
            return kind
        if kind == "resize":
            self.mirror.resize(self.random_size())
            return f"{kind} {self.size} {self.rng.choice((self.beneath_size, UNKNOWN_SIZE))}"
        if kind == "read":
            reads.append((start, bytes(self.mirror.now[start:start + length])))
        elif kind == "write":
            return f"write {start} {length} {self.write(start, length)}"
        else:
            self.zero(*(self.whole_clusters(start, length) if kind == "discard"
                        else (start, length)))
        return f"{kind} {start} {length}"

    def ours(self, lines=None):
        reads, lines = [], lines or [f"open {self.rng.choice((0, 0, 1))}"]
        lines += [self.our_operation(reads) for _ in range(self.rng.randint(0, 40))]
        end = self.rng.choices(("close", "seal", "kill"), (6, 2, 2))[0]
        lines += [f"read 0 {self.size}", "map", end]
        reads.append((0, bytes(self.mirror.now)))
        self.log += ["we:", *(f"  {line}" for line in lines)]
        found, result = self.script(lines, code=-signal.SIGKILL if end == "kill" else 0)
        self.compare_reads(found, reads)
        if end == "kill":
            self.recover()
        else:
            self.mirror.flushed()
            self.compare(result.stdout.decode())

    def compare_reads(self, found, reads):
        position = 0
        for start, expected in reads:
            got = found[position:position + len(expected)]
            position += len(expected)
            difference = first_difference(got, expected)
            assert difference is None, f"we read {start:#x}+{len(expected):#x}: {difference}"

    def recover(self):
        """After a writer was killed: QEMU finds no error but leaks, our repair leaves none."""
        qemu.check(self.node(backing=False), leaks_allowed=True)
        self.log.append("repair")
        run(CAIRN, "image", "check", "--repair", "all", "-q", self.image)
        found, _ = self.script(["open 0", f"read 0 {self.size}"])
        self.mirror.after_crash(found)
        self.compare()

    def refused(self, why):
        """Our own turn ends where it begins, by name."""
        _, result = self.script(["open 0", f"read 0 {self.size}"], code=1)
        said = result.stderr.decode()
        assert why in said and self.image.name in said, f"expected {why!r}: {said}"

    # -- QEMU's turn -----------------------------------------------------------------------------

    def qemu_operation(self):
        kind = self.rng.choices(("write", "write -z", "write -z -u", "discard", "flush"),
                                (8, 2, 2, 2, 1))[0]
        start, length = self.random_range()
        if kind == "flush":
            self.mirror.flushed()
            return kind
        if kind == "write":
            return f"write -q -s {self.write(start, length)} {start} {length}"
        self.zero(*(self.whole_clusters(start, length) if kind == "discard" else (start, length)))
        return f"{kind} -q {start} {length}"

    def qemu_operations(self):
        return [self.qemu_operation() for _ in range(self.rng.randint(1, 12))]

    def io(self, *commands):
        self.log += ["qemu:", *(f"  {command}" for command in commands)]
        qemu.io(self.node(), *commands)
        self.mirror.flushed()

    def img(self, *words):
        self.log.append(f"qemu-img {' '.join(map(str, words))}")
        qemu.img(*words)

    def theirs(self):
        self.rng.choice([self.io_turn] * 5 + [
            self.aborted_turn, self.lazy_turn, self.resize_turn, self.snapshot_turn,
            self.bitmap_turn, self.compressed_turn, self.rebase_turn, self.commit_turn])()

    def io_turn(self):
        self.io(*self.qemu_operations())
        self.compare()

    def abort(self):
        commands = [*self.qemu_operations(), "abort"]
        self.log += ["qemu:", *(f"  {command}" for command in commands)]
        run("qemu-io", *(word for command in commands for word in ("-c", command)), self.node(),
            code=-signal.SIGABRT)

    def aborted_turn(self):
        self.abort()
        self.recover()

    def lazy_turn(self):
        """Lazy refcounts, and the dirty bit that a killed QEMU leaves; at times it stays for us."""
        self.img("amend", "-q", "-o", "lazy_refcounts=on", self.node(backing=False))
        self.abort()
        flags = json.loads(qemu.img("info", "--output=json", self.node(backing=False)).stdout)
        if flags["dirty-flag"]:
            self.refused("incompatible_features is 0x11")
            self.log.append("repair")
            run(CAIRN, "image", "check", "--repair", "all", "-q", self.image)
        self.recover()
        if self.rng.random() < 0.7:
            self.img("amend", "-q", "-o", "lazy_refcounts=off", self.node(backing=False))

    def resize_turn(self):
        """Up by any number of sectors, or down to whole clusters (within one, QEMU keeps what it
        cut off)."""
        size = self.random_size()
        if size < self.size:
            size = max(size // self.cluster, 1) * self.cluster
        self.img("resize", "-q", "--shrink", self.node(), size)
        self.mirror.resize(size)
        self.compare()

    def snapshot_turn(self):
        """While there is one, the image is not ours to write."""
        before = bytes(self.mirror.now)
        self.img("snapshot", "-c", "kept", self.node())
        self.refused("nb_snapshots")
        self.io(*self.qemu_operations())
        if self.rng.random() < 0.5:
            self.img("snapshot", "-a", "kept", self.node())
            self.mirror = Mirror(before)
        self.compare()
        self.img("snapshot", "-d", "kept", self.node())
        self.compare()

    def bitmap_turn(self):
        self.img("bitmap", "--add", "-f", "qcow2", self.image, "b0")
        self.refused("autoclear_features")
        self.io(*self.qemu_operations())
        self.compare()
        self.img("bitmap", "--remove", "-f", "qcow2", self.image, "b0")
        self.compare()

    def compressed_turn(self):
        """A compressed cluster where nothing is; we do not go on before it is written over."""
        free = [entry["start"] for entry in qemu.extent_map(self.node(backing=False))
                if not entry["present"] and entry["start"] % self.cluster == 0
                and entry["length"] >= self.cluster]
        if not free:
            return
        start = self.rng.choice(free)
        self.mirror.will_change(start, b"c" * self.cluster)
        self.io(f"write -q -c -P {ord('c')} {start} {self.cluster}")
        self.refused("compressed clusters")
        self.compare()
        length = self.rng.choice((self.cluster, SECTOR))
        self.io(f"write -q -s {self.write(start, length)} {start} {length}")
        self.compare()

    def rebase_turn(self):
        """Another backing name is refused; the recorded one, back in its place, is not."""
        own = run(CAIRN, "image", "info", "--json", self.image).json().get("backingFile")
        self.img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", self.image)
        self.refused('the backing file name is "/etc/passwd"')
        self.img("rebase", "-u", "-f", "qcow2", *(("-F", "raw", "-b", own) if own else ("-b", "")),
                 self.image)
        self.compare()

    def commit_turn(self):
        """Into the layer beneath, which then holds what the disk shows."""
        if self.top_format != "qcow2" or self.look_beneath() < self.size:
            return
        self.img("commit", "-q", self.node())
        self.look_beneath()
        self.compare()

    # -- Comparison ------------------------------------------------------------------------------

    def copy_for_qemu(self):
        """The image over its chain by name, without holes in the file, as qemu-img and the cairn
        command open it."""
        copy = self.folder / "copy.qcow2"
        run("cp", "--sparse=never", self.image, copy)
        below = ("-F", self.top_format, "-b", self.top.name) if self.top else ("-b", "")
        qemu.img("rebase", "-u", "-f", "qcow2", *below, copy)
        return copy

    def compare(self, our_map=None):
        """Content and map, as QEMU, our active layer (our_map) and our reading side see them."""
        self.nr_turns += 1
        qemu.check(self.node(backing=False))
        copy = self.copy_for_qemu()
        difference = first_difference(qemu.convert(copy, self.folder / "qemu.raw", "qcow2"),
                                      bytes(self.mirror.now))
        assert difference is None, f"qemu-img convert, expected: {difference}"
        theirs = qemu.extent_map(copy)
        ours = run(CAIRN, "image", "map", "--json", copy).json()
        difference = qemu.first_extent_difference(ours, theirs)
        assert difference is None, f"cairn image map: {difference}"
        if our_map is not None:
            difference = qemu.first_extent_difference(parse_map(our_map), top_of(theirs))
            assert difference is None, f"active_map: {difference}"
        if self.rng.random() < 0.2:
            self.compare_sealed(copy, theirs)
        copy.unlink()

    def compare_sealed(self, copy, theirs):
        """Written anew, it holds the same, in the same layer."""
        compression = self.rng.choice(("none", "zlib", "zstd"))
        self.log.append(f"compare with seal --compress {compression}")
        sealed = self.folder / "sealed.qcow2"
        seal(copy, sealed, compression)
        difference = first_difference(qemu.convert(sealed, self.folder / "qemu.raw", "qcow2"),
                                      bytes(self.mirror.now))
        assert difference is None, f"sealed, expected: {difference}"
        difference = qemu.first_depth_difference(qemu.extent_map(sealed), theirs)
        assert difference is None or not self.top, f"sealed, layers: {difference}"
        sealed.unlink()


def seal(path, sealed, compression):
    """`cairn image seal`, twice: nothing leaks, and the bytes are the same."""
    again = sealed.with_suffix(".again")
    for out in (sealed, again):
        run(CAIRN, "image", "seal", "-q", "--compress", compression, path, out)
    qemu.check(sealed)
    assert sealed.read_bytes() == again.read_bytes(), "sealing twice gives two files"
    again.unlink()


def parse_map(text):
    """What active_script printed as `qemu-img map` has it, holes left out."""
    entries = []
    for kind, start, length, host_off in (line.split() for line in text.splitlines()):
        if kind in KINDS:
            zero, has_offset = KINDS[kind]
            entries.append({"start": int(start), "length": int(length), "depth": 0,
                            "present": True, "zero": zero, "data": not zero,
                            "offset": int(host_off) if has_offset else None})
    return entries


def top_of(extents):
    """What the top layer has of a map."""
    return [entry for entry in extents if entry["depth"] == 0 and entry["present"]]
