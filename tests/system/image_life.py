# SPDX-License-Identifier: Apache-2.0
"""Chains whose layers have seen a lot: qcow2 images of every shape that qemu-img makes, with
snapshots made, reverted to and deleted, bitmaps, resizes, compressed clusters among others, and
writers that were killed.

What QEMU 7.2 does wrong is kept away from as in qemu.py: a compressed write goes to a cluster that
the image never touched, and has a qemu-io run of its own.
"""

import os
import shutil
import signal

import qemu
from cairntest import KIB, MIB, run

SIZE_MAX = 16 * MIB


class Lived(qemu.RandomChain):
    """A chain of 1 to 6 layers; log gets what happens to them, .snapshots what each has."""

    SIZE_LIMITS = (MIB, MIB, 4 * MIB, SIZE_MAX)

    def __init__(self, rng, folder, log):
        self.log, self.snapshots, self.bitmaps = log, {}, {}
        # Of the layer that is being made: clusters, and whether any is compressed.
        self.touched, self.packed = set(), False
        super().__init__(rng, folder)
        if self.top_format == "raw":  # here qemu-img map counts bytes, and we sectors
            os.truncate(self.top, self.top.stat().st_size // qemu.SECTOR * qemu.SECTOR)

    def note(self, path, *words):
        self.log.append(f"{path.name}: {' '.join(map(str, words))}")

    def img(self, path, *words):
        """A qemu-img command that ends with the image, or has it at "@"."""
        words = [path if word == "@" else word for word in (words if "@" in words
                                                            else (*words, "@"))]
        self.note(path, *words)
        qemu.img(*words)

    def io(self, path, *commands, fmt="qcow2"):
        self.note(path, "; ".join(commands))
        qemu.io(path, *commands, fmt=fmt)

    # -- Making one layer ------------------------------------------------------------------------

    def make_raw(self, plan):
        super().make_raw(plan)
        if self.rng.random() < 0.3:  # ends within a sector
            with open(self.layers[-1], "ab") as out:
                out.write(self.rng.randbytes(self.rng.randrange(1, qemu.SECTOR)))

    def fill(self, path, plan, source):
        self.note(path, plan.describe())
        self.touched, self.packed = set(), False
        self.snapshots[path], self.bitmaps[path] = [], []
        if plan.preallocation != "off" or self.rng.random() < 0.2 and self.converted(path, plan,
                                                                                      source):
            self.touched.update(range(plan.size // plan.cluster + 1))
        for _ in range(self.rng.randint(1, 8)):
            self.rng.choice(self.events(plan))(path, plan, source)
        if not self.packed and self.rng.random() < 0.2:
            self.killed(path, plan, source)

    def events(self, plan):
        always = [self.writes] * 6 + [self.compressed] * 3 + [self.resize, self.amend]
        snapshots = [self.snapshot, self.snapshot, self.revert, self.delete]
        bitmaps = [self.add_bitmap, self.add_bitmap, self.change_bitmap, self.merge_bitmaps]
        return (always + (snapshots if plan.refcount_bits > 4 else [])
                + (bitmaps if plan.version == 3 else []))

    def converted(self, path, plan, source):
        """The layer as `qemu-img convert -c` makes it, of bytes of its own."""
        raw, made = self.folder / "converted.raw", self.folder / "converted.qcow2"
        with open(raw, "wb") as out:
            out.truncate(plan.size)
        for start, length in (self.random_range(plan) for _ in range(6)):
            qemu.io(raw, f"write -q -s {source} {start} {length}", fmt="raw")
        options = ",".join(word for word in plan.options().split(",")
                           if not word.startswith("preallocation="))
        self.note(path, "convert -c", options)
        qemu.img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, made)
        if len(self.layers) > 1:
            below = self.layers[-2]
            qemu.img("rebase", "-u", "-f", "qcow2", "-b", below.name, "-F",
                     "raw" if self.plans[-2].raw else "qcow2", made)
        shutil.move(made, path)
        raw.unlink()
        self.packed = True
        return True

    # -- What happens to it ----------------------------------------------------------------------

    def writes(self, path, plan, source):
        commands = self.plain_writes(plan, source)
        for command in commands:
            start, length = map(int, command.split()[-2:])
            self.touched.update(range(start // plan.cluster,
                                      (start + length - 1) // plan.cluster + 1))
        self.io(path, *commands)

    def compressed(self, path, plan, source):
        free = sorted(set(range(plan.size // plan.cluster)) - self.touched)
        for number in self.rng.sample(free, min(len(free), self.rng.randint(1, 4))):
            self.io(path, f"write -q -c -s {source} {number * plan.cluster} {plan.cluster}")
            self.touched.add(number)
            self.packed = True

    def snapshot(self, path, plan, source):
        name = f"s{len(self.log)}"
        self.img(path, "snapshot", "-c", name)
        self.snapshots[path].append((name, plan.size))

    def revert(self, path, plan, source):
        if self.snapshots[path] and not self.bitmaps[path]:  # QEMU does not with bitmaps
            name, plan.size = self.rng.choice(self.snapshots[path])
            self.img(path, "snapshot", "-a", name)

    def delete(self, path, plan, source):
        if self.snapshots[path]:
            name, _ = self.snapshots[path].pop(self.rng.randrange(len(self.snapshots[path])))
            self.img(path, "snapshot", "-d", name)

    def resize(self, path, plan, source):
        """Not where QEMU does not: version 2 with snapshots; and what is beneath is not hidden in
        version 2, nor by a part of a compressed cluster."""
        if plan.version == 2 and self.snapshots[path]:
            return
        if len(self.layers) > 1 and (plan.version == 2 or plan.extended):
            return
        size = min(max(int(plan.size * self.rng.uniform(0.5, 1.5)) // qemu.SECTOR, 1)
                   * qemu.SECTOR, SIZE_MAX)
        self.img(path, "resize", "-q", "-f", "qcow2", "--shrink", "@", size)
        # What is added may be zeros that are marked, to hide what is beneath.
        self.touched.update(range(min(size, plan.size) // plan.cluster, size // plan.cluster + 1))
        plan.size = size

    def amend(self, path, plan, source):
        """Other refcounts only if a refcount block has few: QEMU takes minutes for 2 MiB."""
        if plan.version == 2:
            if self.snapshots[path]:
                return
            self.img(path, "amend", "-q", "-f", "qcow2", "-o", "compat=1.1")
            plan.version = 3
        elif self.rng.random() < 0.5:
            plan.lazy = not plan.lazy
            self.img(path, "amend", "-q", "-f", "qcow2", "-o",
                     f"lazy_refcounts={'on' if plan.lazy else 'off'}")
        elif plan.refcount_bits < 64 and plan.cluster // plan.refcount_bits <= 4 * KIB:
            plan.refcount_bits = max(2 * plan.refcount_bits, 16)
            self.img(path, "amend", "-q", "-f", "qcow2", "-o",
                     f"refcount_bits={plan.refcount_bits}")

    def add_bitmap(self, path, plan, source):
        name = f"b{len(self.log)}"
        granularity = 1 << self.rng.randint(9, 21)
        disabled = self.rng.choice(((), (), ("--disable",)))
        self.img(path, "bitmap", "--add", *disabled, "-g", granularity, "@", name)
        self.bitmaps[path].append(name)

    def change_bitmap(self, path, plan, source):
        if self.bitmaps[path]:
            name, verb = self.rng.choice(self.bitmaps[path]), self.rng.choice(
                ("--clear", "--enable", "--disable", "--remove"))
            self.img(path, "bitmap", verb, "@", name)
            if verb == "--remove":
                self.bitmaps[path].remove(name)

    def merge_bitmaps(self, path, plan, source):
        if len(self.bitmaps[path]) > 1:
            one, other = self.rng.sample(self.bitmaps[path], 2)
            self.img(path, "bitmap", "--merge", one, "@", other)

    def reverted(self, name):
        """A copy of the top layer, reverted to a snapshot and without holes in its file."""
        copy = self.folder / "reverted.qcow2"
        run("cp", "--sparse=never", self.top, copy)
        for bitmap in self.bitmaps[self.top]:
            qemu.img("bitmap", "--remove", copy, bitmap)
        qemu.img("snapshot", "-a", name, copy)
        return copy

    def killed(self, path, plan, source):
        """A writer that ends without a flush: refcounts not written, bitmaps not saved, and where
        refcounts are lazy the dirty bit.  Not where clusters are compressed: QEMU gives up the space
        of one that is discarded before its entry is gone."""
        commands = [*self.plain_writes(plan, source), "abort"]
        self.note(path, "; ".join(commands))
        run("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)),
            path, code=-signal.SIGABRT)
