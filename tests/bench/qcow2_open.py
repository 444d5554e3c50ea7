# SPDX-License-Identifier: Apache-2.0
"""The core of tests/bench/qcow2_open: makes images, runs `cairn image` and `qemu-img` on them in turn, and
prints medians of time, ratios and peak memory.

What is timed is the command as a user runs it, its start included; the first row is that start alone.
Output goes to /dev/null.  Page cache warm.  Before anything is timed both tools
have to say the same: the same map, and clean.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "system"))
from cairntest import CAIRN, private_home, run  # noqa: E402
from qemu import first_extent_difference  # noqa: E402
from scattered_image import write_dense, write_scattered  # noqa: E402

GIB = 1 << 30
TOOLS = ("cairn", "qemu-img")
VERSION = ((CAIRN, "--version"), ("qemu-img", "--version"))
INFO = ((CAIRN, "image", "info"), ("qemu-img", "info"))
MAP = ((CAIRN, "image", "map", "--json"), ("qemu-img", "map", "--output=json"))
CHECK = ((CAIRN, "image", "check"), ("qemu-img", "check"))


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/qcow2_open")
    parser.add_argument("--size", type=int, default=100, help="GiB of each disk (100)")
    parser.add_argument("--clusters", type=int, default=200000,
                        help="of 64 KiB, at random, in the scattered images (200000)")
    parser.add_argument("--rounds", type=int, default=7, help="medians are over these (7)")
    parser.add_argument("--folder", type=pathlib.Path,
                        help="keep the images here, and take those that are here (a temporary one)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def make_images(options, folder):
    """{name: path}, made where they are missing."""
    size = options.size * GIB
    stem = f"{options.size}g-{options.clusters}"
    makers = {
        "scattered": lambda path: write_scattered(path, size, options.clusters),
        "scattered, extended L2": lambda path: write_scattered(path, size, options.clusters, True),
        "full": lambda path: write_dense(path, size),
    }
    images = {}
    for name, make in makers.items():
        images[name] = folder / f"{stem}-{name.replace(', ', '-').replace(' ', '-')}.qcow2"
        if not images[name].exists():
            make(images[name].with_suffix(".part"))
            images[name].with_suffix(".part").rename(images[name])
    return images


def rows(images):
    """What is measured: (name, image, commands)."""
    yield "start", None, VERSION
    for name, image in images.items():
        yield f"info, {name}", image, INFO
        # QEMU takes the full image, whose data are holes, for a preallocated one and asks the file
        # system about each extent: not what is to be compared.
        if name != "full":
            yield f"map, {name}", image, MAP
        yield f"check, {name}", image, CHECK


def both_say_the_same(images):
    for name, image in images.items():
        for command in CHECK:
            run(*command, image)
        if name == "full":
            continue
        ours, theirs = (json.loads(run(*command, image).stdout) for command in MAP)
        difference = first_extent_difference(ours, theirs)
        if difference:
            raise SystemExit(f"{name}: the maps differ: {difference}")


def timed(command):
    """Seconds by the clock, and of processor time."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime


def peak_memory(command):
    """KiB.  By time(1): a child of this process would begin with this process's own."""
    with tempfile.NamedTemporaryFile("r") as report:
        subprocess.run(["/usr/bin/time", "-f", "%M", "-o", report.name, *command], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return int(report.read())


def measure(rounds, image, commands):
    """{tool: {seconds, cpuSeconds, peakKiB, outputBytes}}"""
    commands = [[*command, image] if image else command for command in commands]
    samples = {tool: [] for tool in TOOLS}
    for _ in range(rounds):
        for tool, command in zip(TOOLS, commands):
            samples[tool].append(timed(command))
    return {tool: {"seconds": statistics.median(seconds for seconds, _ in samples[tool]),
                   "cpuSeconds": statistics.median(cpu for _, cpu in samples[tool]),
                   "peakKiB": peak_memory(command),
                   "outputBytes": len(run(*command).stdout)}
            for tool, command in zip(TOOLS, commands)}


def print_table(options, figures):
    print(f"milliseconds, disks of {options.size} GiB, {options.clusters:,} clusters of 64 KiB where "
          f"scattered, page cache warm, start included, median of {options.rounds}\n")
    print(f"{'':30}{'by the clock':^29}{'of processor time':^29}{'peak MiB':^20}")
    print(f"{'':30}" + 2 * f"{'cairn':>10}{'qemu-img':>10}{'ratio':>9}" + f"{'cairn':>10}{'qemu-img':>10}")
    for name, by_tool in figures.items():
        ours, theirs = (by_tool[tool] for tool in TOOLS)
        print(f"{name:30}" + "".join(
            f"{ours[key] * 1e3:>10.1f}{theirs[key] * 1e3:>10.1f}{theirs[key] / ours[key]:>8.1f}×"
            for key in ("seconds", "cpuSeconds"))
            + f"{ours['peakKiB'] / 1024:>10.1f}{theirs['peakKiB'] / 1024:>10.1f}")


def bench(options, folder):
    images = make_images(options, folder)
    both_say_the_same(images)
    figures = {name: measure(options.rounds, image, commands)
               for name, image, commands in rows(images)}
    if options.json:
        print(json.dumps({"bench": "qcow2_open", "sizeGiB": options.size,
                          "clusters": options.clusters, "rounds": options.rounds,
                          "figures": figures, "time": int(time.time())}, indent=2))
    else:
        print_table(options, figures)


def main():
    options = parse_arguments()
    private_home()
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        bench(options, options.folder)
        return
    with tempfile.TemporaryDirectory(prefix="cairn-bench",
                                     dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        bench(options, pathlib.Path(name))


if __name__ == "__main__":
    main()
