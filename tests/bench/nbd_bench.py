# SPDX-License-Identifier: Apache-2.0
"""What the benches over NBD share: an image full of data, contenders that are started anew, fio's NBD
engine, medians, cells of a table."""

import argparse
import json
import pathlib
import random
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "system"))
from cairntest import CommandFailed, MIB, Process, run, wait_for  # noqa: E402

ATTEMPTS = 4


def parse_arguments(prog, size, seconds, rounds):
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--size", type=int, default=size, help=f"MiB of the disk ({size})")
    parser.add_argument("--seconds", type=float, default=seconds,
                        help=f"of each measurement ({seconds})")
    parser.add_argument("--rounds", type=int, default=rounds,
                        help=f"medians are over these ({rounds})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def make_image(folder, size):
    """One qcow2 layer, every cluster of it random data."""
    raw, image = folder / "disk.raw", folder / "disk.qcow2"
    generator = random.Random(1)
    with open(raw, "wb") as out:
        for _ in range(size // MIB):
            out.write(generator.randbytes(MIB))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
    raw.unlink()
    return image


class Contender:
    """Something that exports the disk over NBD; start() gives the process, with its .uri."""

    def __init__(self, name, start):
        self.name, self.start, self.stalls = name, start, 0
        self.process = None

    def ensure(self):
        if not self.process:
            self.process = self.start()
        return self.process

    def kill(self):
        if self.process:
            self.process.kill()
            self.process = None

    def stop(self):
        """Gracefully; what it was asked to write is written."""
        if self.process:
            self.process.stop(code=None)
            self.process = None

    def measure(self, seconds, *arguments):
        """What fio says; None if it stalls again and again."""
        for _ in range(ATTEMPTS):
            try:
                return run_fio(self.ensure().uri, seconds, *arguments)
            except CommandFailed:
                self.stalls += 1
                self.kill()
        return None


def start_qemu_nbd(folder, name, image, *arguments):
    socket = folder / f"{name}.sock"
    socket.unlink(missing_ok=True)
    process = Process(["qemu-nbd", "-t", "-f", "qcow2", "-k", socket, "-e", "16", *arguments, image],
                      folder / f"{name}.log")
    wait_for(lambda: process.check_running() and socket.exists(), "qemu-nbd's socket")
    process.uri = f"nbd+unix:///?socket={socket}"
    return process


def run_fio(uri, seconds, *arguments, slack=4):
    """fio's figures of one job, which may take that long and a bit: reads under way are waited for."""
    result = run("fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", "--thread",
                 f"--runtime={round(seconds * 1000)}ms", "--randrepeat=0", "--output-format=json",
                 *arguments, cwd=tempfile.gettempdir(), timeout=seconds + slack)
    job = json.loads(result.stdout[result.stdout.index(b"{"):])["jobs"][0]
    if job["error"]:
        raise SystemExit(result.describe())
    return job


def median(values):
    measured = [value for value in values if value is not None]
    return statistics.median(measured) if measured else None


def cell(ours, theirs):
    """A contender's figure and how much larger ours is."""
    return f"{theirs:,.0f} ({ours / theirs:.2f}×)" if theirs else "stalls"
