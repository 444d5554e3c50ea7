#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`cairn image resize`: local images, and the disk of a folder that is not attached."""

import os

from cairntest import BUILD, CAIRN, Case, KIB, MIB, main, preload, run, wait_for

SIZE = 8 * MIB


def cairn(*arguments, **options):
    return run(CAIRN, *arguments, **options)


def virtual_size(image):
    return run("qemu-img", "info", "--output=json", image).json()["virtual-size"]


def write(image, offset, length, pattern):
    run("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {offset} {length}", image)


def pattern(image, offset, length, value):
    """Does QEMU read this?"""
    run("qemu-io", "-f", "qcow2", "-c", f"read -P {value} {offset} {length}", image)


class Resize(Case):
    def make(self, name="disk.qcow2"):
        image = self.tmp / name
        cairn("image", "create", image, str(SIZE))
        return image

    def test_sizes_are_absolute_and_relative(self):
        image = self.make()
        for text, size in (("20M", 20 * MIB), ("+4M", 24 * MIB), ("-6M", 18 * MIB),
                           ("100G", 100 << 30), ("1000001", 1000448)):
            answer = cairn("image", "resize", "--shrink", "--json", image, text).json()
            self.assertEqual(answer, {"filename": str(image), "virtualSize": size})
            self.assertEqual(virtual_size(image), size)
            run("qemu-img", "check", image)
        self.assertIn(b"977 KiB (1000448 bytes)",
                      cairn("image", "resize", image, "1000448").stdout)

    def test_wrong_sizes_are_usage(self):
        image = self.make()
        for text in ("", "much", "-", "+", "+-1G", "5X", "0"):
            cairn("image", "resize", image, text, code=2)
        for text in ("-8M", "-9M"):
            self.assertIn(b"the size is 8388608, and cannot be changed by that much",
                          cairn("image", "resize", "--shrink", image, text, code=2).stderr)
        self.assertIn(b"too large", cairn("image", "resize", image, "7E", code=1).stderr)
        self.assertEqual(virtual_size(image), SIZE)

    def test_shrinking_has_to_be_asked_for(self):
        image = self.make()
        refused = cairn("image", "resize", image, "4M", code=2)
        self.assertIn(b"would be lost", refused.stderr)
        self.assertEqual(virtual_size(image), SIZE)
        cairn("image", "resize", "--shrink", image, "4M")
        self.assertEqual(virtual_size(image), 4 * MIB)

    def test_what_was_cut_off_does_not_come_back(self):
        image = self.make()
        write(image, 0, SIZE, 7)
        cairn("image", "resize", "--shrink", image, str(MIB + 512))
        self.assertLess(image.stat().st_size, 3 * MIB)
        cairn("image", "resize", image, str(SIZE))
        pattern(image, 0, MIB + 512, 7)
        pattern(image, MIB + 512, SIZE - MIB - 512, 0)
        run("qemu-img", "check", image)

    def test_growing_over_a_longer_backing_file(self):
        base, image = self.make("base.qcow2"), self.tmp / "top.qcow2"
        write(base, 0, SIZE, 5)
        cairn("image", "create", "--backing", "base.qcow2", "--backing-format", "qcow2", image,
              str(2 * MIB))
        cairn("image", "resize", image, "10M")
        pattern(image, 0, 2 * MIB, 5)
        pattern(image, 2 * MIB, SIZE, 0)
        run("qemu-img", "check", image)

    def test_files_in_use_are_refused(self):
        image = self.make()
        socket = self.tmp / "socket"
        server = self.start(["qemu-nbd", "-t", "-f", "qcow2", "-k", socket, image], "qemu-nbd")
        wait_for(lambda: server.check_running() and socket.exists(), "qemu-nbd's socket")
        self.assertIn(b"in use", cairn("image", "resize", image, "+1M", code=1).stderr)

    def test_other_shapes_are_refused_by_name(self):
        image = self.tmp / "plain.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", image, "8M")
        refused = cairn("image", "resize", image, "+1M", code=1).stderr
        self.assertIn(b"qemu-img resize", refused)
        self.assertIn(b"incompatible_features is 0x0, an active layer has 0x10", refused)
        self.assertEqual(virtual_size(image), SIZE)


class ResizeDisk(Case):
    def disk(self, server):
        """A disk over a base of 8 MiB, with 1 MiB of its own."""
        base = self.tmp / "base.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", base, str(SIZE))
        write(base, 0, SIZE, 3)
        server.push(base, "resize:v1")
        folder = self.tmp / "disk"
        attachment = self.attach(server, "resize:v1", "--disk", folder)
        self.io(attachment, "write -P 4 1M 1M")
        attachment.stop()
        return folder

    def io(self, attachment, *commands):
        run("qemu-io", "-f", "raw", *(word for c in commands for word in ("-c", c)), attachment.uri)

    def size_of(self, server, target):
        return server.cairn("info", "--json", target).json()["virtualSize"]

    def test_a_grown_disk_is_attached_and_published(self):
        server = self.cairnd()
        folder = self.disk(server)
        cairn("image", "resize", folder / "active.qcow2", "+8M")
        self.assertEqual(self.size_of(server, folder), 2 * SIZE)
        attachment = self.attach(server, "--disk", folder)
        self.assertEqual(self.size_of(server, folder), 2 * SIZE)
        self.io(attachment, "read -P 3 0 1M", "read -P 4 1M 1M", f"read -P 3 2M {SIZE - 2 * MIB}",
                f"read -P 0 {SIZE} {SIZE}", "write -P 9 12M 1M")
        server.cairn("snapshot", folder, "resize:v2")
        self.assertEqual(self.size_of(server, "resize:v2"), 2 * SIZE)
        self.io(attachment, "read -P 9 12M 1M", "read -P 0 13M 3M")
        attachment.stop()
        attachment = self.attach(server, "--disk", folder)
        self.io(attachment, "read -P 4 1M 1M", "read -P 9 12M 1M")
        attachment.stop()

    def test_a_disk_that_was_only_resized_is_published(self):
        server = self.cairnd()
        folder = self.disk(server)
        server.cairn("snapshot", folder, "resize:v2")
        cairn("image", "resize", folder / "active.qcow2", "12M")
        server.cairn("snapshot", folder, "resize:v3")
        self.assertEqual(self.size_of(server, "resize:v2"), SIZE)
        self.assertEqual(self.size_of(server, "resize:v3"), 12 * MIB)
        self.assertEqual(len(server.http.data("resize:v3")), 12 * MIB)

    def test_a_disk_that_shrank_does_not_show_its_base_again(self):
        server = self.cairnd()
        folder = self.disk(server)
        active = folder / "active.qcow2"
        cairn("image", "resize", "--shrink", active, str(MIB + 64 * KIB))
        attachment = self.attach(server, "--disk", folder)
        self.assertEqual(self.size_of(server, folder), MIB + 64 * KIB)
        self.io(attachment, "read -P 3 0 1M", "read -P 4 1M 64k")
        attachment.stop()
        cairn("image", "resize", active, str(SIZE))
        server.cairn("snapshot", folder, "resize:v2")
        expected = bytes([3]) * MIB + bytes([4]) * 64 * KIB + bytes(SIZE - MIB - 64 * KIB)
        self.assertEqual(server.http.data("resize:v2"), expected)

    def test_no_marks_are_made_where_the_base_does_not_reach(self):
        server = self.cairnd()
        folder = self.disk(server)
        before = os.stat(folder / "active.qcow2").st_size
        cairn("image", "resize", folder / "active.qcow2", "10T")
        self.assertLess(os.stat(folder / "active.qcow2").st_size, before + 2 * MIB)
        self.assertEqual(virtual_size(folder / "active.qcow2"), 10 << 40)

    def seal_only(self, server, folder):
        """A snapshot that seals and cannot publish; ends the server."""
        nbdkit = self.start(["nbdkit", "-f", "--unix", self.tmp / "socket",
                             BUILD / "lib" / "nbdkit-cairn-plugin.so", f"server={server.url}",
                             f"disk={folder}", "deadline=100"], "nbdkit", env=preload())
        wait_for(lambda: nbdkit.check_running() and (folder / "control.sock").exists(), "nbdkit")
        server.kill()
        server.cairn("snapshot", folder, "resize:v2", code=1)
        nbdkit.stop()
        self.assertTrue((folder / "sealed-1.qcow2").exists())

    def test_a_layer_that_a_killed_snapshot_has_sealed_is_refused(self):
        """Killed between disk.json and the rename: active.qcow2 is the sealed layer, by another name."""
        server = self.cairnd("first")
        folder = self.disk(server)
        self.seal_only(server, folder)
        active, sealed = folder / "active.qcow2", folder / "sealed-1.qcow2"
        os.rename(active, folder / "next.qcow2")
        os.link(sealed, active)
        refused = cairn("image", "resize", "--shrink", active, "1M", code=1).stderr
        self.assertIn(b"a snapshot was interrupted", refused)
        refused = cairn("image", "resize", sealed, "+1M", code=1).stderr
        self.assertIn(b"is a sealed layer", refused)
        self.assertEqual(virtual_size(sealed), SIZE)
        server = self.cairnd("second", store=server.store)
        self.attach(server, "--disk", folder).stop()
        cairn("image", "resize", "--shrink", active, "1M")
        self.assertEqual((virtual_size(active), virtual_size(sealed)), (MIB, SIZE))

    def test_a_sealed_layer_that_waits_may_be_smaller(self):
        server = self.cairnd("first")
        folder = self.disk(server)
        self.seal_only(server, folder)
        server = self.cairnd("second", store=server.store)
        cairn("image", "resize", folder / "active.qcow2", "12M")
        attachment = self.attach(server, "--disk", folder)
        self.io(attachment, "read -P 4 1M 1M", f"read -P 0 {SIZE} 4M", "write -P 5 9M 1M")
        attachment.stop()
        server.cairn("snapshot", folder, "resize:v2")
        expected = bytes([3]) * MIB + bytes([4]) * MIB + bytes([3]) * 6 * MIB
        expected += bytes(MIB) + bytes([5]) * MIB + bytes(2 * MIB)
        self.assertEqual(server.http.data("resize:v2"), expected)

    def test_an_attached_disk_is_refused(self):
        server = self.cairnd()
        folder = self.disk(server)
        attachment = self.attach(server, "--disk", folder)
        refused = cairn("image", "resize", folder / "active.qcow2", "+1M", code=1)
        self.assertIn(b"in use", refused.stderr)
        attachment.stop()


if __name__ == "__main__":
    main()
