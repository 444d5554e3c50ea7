#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The features of the format crossed at random, both ways: QEMU writes and we read; we write and
QEMU reads; QEMU writes on our image and we go on.

Each test runs for CAIRN_TEST_SECONDS (by hand: as long as one likes) and prints how many images it
compared.  A failure tells seed, case and steps, and by hand the images stay; that case alone is run
by CAIRN_TEST_SEED=… CAIRN_TEST_CASE=… and the file's --test.
"""

import hashlib
import os
import re
import time

import image_life
import qemu
import turns
from cairntest import CAIRN, Case, SEED, first_difference, main, run, scaled, seeded

SECONDS = float(os.environ.get("CAIRN_TEST_SECONDS") or scaled(3, 8, 900))
ONLY = os.environ.get("CAIRN_TEST_CASE")
os.environ.setdefault("CAIRN_TEST_KEEP", "1")  # the runner says so itself

SECRET = ("--object", "secret,id=s,data=cairn")
CHECK_COUNTS = ("check-errors", "corruptions", "leaks", "image-end-offset", "total-clusters",
                "allocated-clusters", "fragmented-clusters", "compressed-clusters")


def cases():
    """Numbers of cases until the time is over; at least one."""
    if ONLY:
        yield int(ONLY)
        return
    end, number = time.monotonic() + SECONDS, 0
    while number == 0 or time.monotonic() < end:
        yield number
        number += 1


class Differential(Case):
    def run_cases(self, name, one_case):
        """one_case(rng, folder, log) compares, gives how many images, and logs what it does."""
        done = 0
        for number in cases():
            folder, log = self.folder(f"case{number}"), []
            try:
                done += one_case(seeded(f"{name} {number}"), folder, log)
            except BaseException as error:
                steps = "\n".join(log)
                raise AssertionError(f"CAIRN_TEST_SEED={SEED} CAIRN_TEST_CASE={number}: {folder}\n"
                                     f"{steps}\n{error}") from error
            run("rm", "-rf", folder)
        print(f"{name}: {number + 1} cases, {done} images compared, 0 mismatches", flush=True)

    # -- QEMU writes, we read ------------------------------------------------------------------

    def test_qemu_writes_and_we_read(self):
        server = self.cairnd()

        def one_case(rng, folder, log):
            lived = image_life.Lived(rng, folder, log)
            expected = self.compare_content(server, lived, folder)
            self.compare_maps(lived)
            images = [path for path in lived.layers if path.suffix == ".qcow2"]
            for path in images:
                self.compare_checks(path)
                self.compare_facts(path)
                self.compare_bitmap(rng, path, lived.bitmaps[path])
            if lived.top in images:
                self.compare_sealed(rng, lived.top, expected)
            if lived.snapshots.get(lived.top):
                self.compare_snapshot(server, rng, lived)
            return len(images)
        self.run_cases("QEMU writes", one_case)

    def compare_content(self, server, lived, folder):
        expected = qemu.convert(lived.top, folder / "expected.raw", lived.top_format)
        server.push(lived.top, "lived:v1", "--format", lived.top_format)
        self.assertIsNone(first_difference(server.http.data("lived:v1"), expected), "GET data")
        server.cairn("rm", "lived:v1")
        return expected

    def compare_maps(self, lived):
        ours = run(CAIRN, "image", "map", "--json", "--format", lived.top_format, lived.top).json()
        self.assertIsNone(qemu.first_extent_difference(ours, qemu.extent_map(lived.top)), "map")

    def compare_checks(self, path, *their_path):
        ours = run(CAIRN, "image", "check", "--json", path, code=None).json()
        theirs = qemu.img("check", "--output=json", *(their_path or (path,)), code=None).json()
        for key in CHECK_COUNTS:
            self.assertEqual(ours[key], theirs.get(key, 0), f"check of {path.name}: {key}")

    def compare_facts(self, path):
        ours = run(CAIRN, "image", "info", "--json", path).json()
        theirs = qemu.img("info", "--output=json", path).json()
        self.assertEqual(our_facts(ours), their_facts(theirs), f"info of {path.name}")

    def compare_bitmap(self, rng, path, names):
        """The dirty ranges of one bitmap; where its writer was killed, the refusal."""
        if not names:
            return
        name = rng.choice(names)
        known = run(CAIRN, "image", "info", "--json", path).json()["bitmaps"]
        if any(bitmap["name"] == name and bitmap["inUse"] for bitmap in known):
            said = run(CAIRN, "image", "bitmap", "--json", path, name, code=1).stderr.decode()
            self.assertIn(f'bitmap "{name}": marked as in use', said)
            return
        ours = run(CAIRN, "image", "bitmap", "--json", path, name).json()
        self.assertEqual([(entry["start"], entry["length"]) for entry in ours],
                         qemu.dirty_ranges(path, name), f"bitmap {name} of {path.name}")

    def compare_sealed(self, rng, top, expected):
        """Written anew, whatever its shape and past, it shows the same."""
        sealed, compression = top.with_name("sealed.qcow2"), rng.choice(("none", "zlib", "zstd"))
        turns.seal(top, sealed, compression)
        content = qemu.convert(sealed, top.with_name("sealed.raw"), "qcow2")
        self.assertIsNone(first_difference(content, expected), f"seal --compress {compression}")

    def compare_snapshot(self, server, rng, lived):
        """A snapshot's map and content, against a copy that is reverted to it."""
        name, _ = rng.choice(lived.snapshots[lived.top])
        copy = lived.reverted(name)
        ours = run(CAIRN, "image", "map", "--internal", name, "--json", lived.top).json()
        self.assertIsNone(qemu.first_extent_difference(ours, qemu.extent_map(copy)),
                          f"map of snapshot {name}")
        server.cairn("push", "--internal", name, lived.top, "lived:snapshot")
        expected = qemu.convert(copy, lived.folder / "expected.raw", "qcow2")
        self.assertIsNone(first_difference(server.http.data("lived:snapshot"), expected),
                          f"GET data of snapshot {name}")
        server.cairn("rm", "lived:snapshot")

    # -- What a layer must not be ----------------------------------------------------------------

    def test_encrypted_and_split_images_are_refused_by_name(self):
        """Encryption and external data files, crossed with the rest: no layer, but described,
        checked, and stored as a blob."""
        server = self.cairnd()
        rng = seeded("refused")
        kinds = [("encrypt.format=aes,encrypt.key-secret=s", "crypt_method 1, AES"),
                 ("data_file={0}.data", 'an external data file ("'),
                 ("data_file={0}.data,data_file_raw=on", 'an external data file ("')]
        if scaled(False, False, True):  # QEMU makes keys for many seconds
            kinds.append(("encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
                          "crypt_method 2, LUKS"))
        for number, (options, why) in enumerate(kinds):
            plan = qemu.Layer(rng, rng.randrange(1, 8192) * qemu.SECTOR, is_base=False)
            path = self.tmp / f"refused{number}.qcow2"
            plan.version = 3 if "data_file" in options else plan.version
            qemu.img("create", "-q", *SECRET, "-f", "qcow2", "-o",
                     f"{plan.options()},{options.format(path)}", path, plan.size)
            with self.subTest(options=options, plan=plan.describe()):
                self.assert_refused(server, path, why)
                self.compare_checks(path, *with_key(path, options))

    def assert_refused(self, server, path, why):
        for command in (("image", "map", path), ("push", path, "refused:v1")):
            said = server.cairn(*command, code=1).stderr.decode()
            self.assertIn(why, said)
            self.assertIn(path.name, said)
        self.assertIn(why, run(CAIRN, "image", "info", "--json", path).json()["refused"])
        data = path.read_bytes()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.assertEqual(server.http.upload("refused", data, digest).status, 201)

    # -- We write, QEMU reads; QEMU writes, we go on -----------------------------------------------

    def test_we_and_qemu_write_in_turns(self):
        def one_case(rng, folder, log):
            work = turns.Turns(rng, folder, log)
            for _ in range(rng.randint(0, 5)):
                rng.choices((work.ours, work.theirs, work.stack), (8, 12, 3))[0]()
            work.ours()
            return work.nr_turns
        self.run_cases("in turns", one_case)


def with_key(path, options):
    """How qemu-img check opens an image that was made with these options."""
    found = re.search(r"encrypt\.format=(\w+)", options)
    return (*SECRET, "--image-opts", f"driver=qcow2,encrypt.format={found[1]},encrypt.key-secret=s,"
            f"file.driver=file,file.filename={path}") if found else (path,)


# -- Facts ----------------------------------------------------------------------------------------

def our_facts(info):
    def has(kind, name):
        return any(feature["name"] == name for feature in info["features"][kind])
    return {
        "version": info["version"], "size": info["virtualSize"], "cluster": info["clusterSize"],
        "refcount bits": info["refcountBits"], "extended L2": info["extendedL2"],
        "compression": info["compression"], "lazy": has("compatible", "lazy refcounts"),
        "dirty": has("incompatible", "dirty bit"), "backing": info.get("backingFile"),
        "backing format": info.get("backingFormat"),
        "snapshots": [(s["id"], s["name"], s["dateSeconds"], s["dateNanoseconds"],
                       s["vmStateSize"]) for s in info["snapshots"]],
        "bitmaps": [(b["name"], b["granularity"], b["inUse"], b["auto"]) for b in info["bitmaps"]],
    }


def their_facts(info):
    more = info["format-specific"]["data"]
    return {
        "version": 2 if more["compat"] == "0.10" else 3, "size": info["virtual-size"],
        "cluster": info["cluster-size"], "refcount bits": more["refcount-bits"],
        "extended L2": more.get("extended-l2", False), "compression": more["compression-type"],
        "lazy": more.get("lazy-refcounts", False), "dirty": info["dirty-flag"],
        "backing": info.get("backing-filename"),
        "backing format": info.get("backing-filename-format"),
        "snapshots": [(s["id"], s["name"], s["date-sec"], s["date-nsec"], s["vm-state-size"])
                      for s in info.get("snapshots", [])],
        "bitmaps": [(b["name"], b["granularity"], "in-use" in b["flags"], "auto" in b["flags"])
                    for b in more.get("bitmaps", [])],
    }


if __name__ == "__main__":
    main()
