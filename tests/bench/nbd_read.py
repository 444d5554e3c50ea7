# SPDX-License-Identifier: Apache-2.0
"""The core of tests/bench/nbd_read: makes the image, starts the three servers side by side, runs fio's
NBD engine against each in turn, several rounds, and prints medians and ratios.

All three read the same image file's bytes from the page cache, so what is compared is the path.  The
rounds interleave the servers, so that a machine that slows down slows all of them.

QEMU 7.2's HTTP driver, with several reads in flight, often loses one for ever.  A contender that does
not answer is started anew and measured again, some times; how often that was is printed, and a pattern that
gives no figure at all is printed as "stalls".
"""

import json
import pathlib
import tempfile
import time

from nbd_bench import Contender, cell, make_image, median, parse_arguments, start_qemu_nbd
from cairntest import Attachment, Cairnd, MIB, private_home
from nginx import Nginx

PATTERNS = {
    "sequential 4 KiB, depth 1": ("--rw=read", "--iodepth=1"),
    "sequential 4 KiB, depth 16": ("--rw=read", "--iodepth=16"),
    "random 4 KiB, depth 1": ("--rw=randread", "--iodepth=1"),
    "random 4 KiB, depth 16": ("--rw=randread", "--iodepth=16"),
}


def start_all(folder, image, servers, contenders):
    """What is compared, in the table's order."""
    server = Cairnd(folder / "cairn")
    servers.append(server)
    server.push(image, "bench:v1")
    nginx = Nginx(folder, "disk.qcow2")
    servers.append(nginx)
    for name, start in (
            ("cairn, remote", lambda: Attachment(server.url, folder / "attach.log", "bench:v1",
                                                 "--read-only")),
            ("qemu-nbd, local file", lambda: start_qemu_nbd(folder, "local", image, "-r")),
            ("qemu-nbd, HTTP from nginx", lambda: start_qemu_nbd(folder, "http",
                                                                 f"{nginx.url}/disk.qcow2", "-r"))):
        contenders.append(Contender(name, start))


def reads_per_second(contender, options, arguments):
    job = contender.measure(options.seconds, "--bs=4k", f"--size={options.size}M", "--time_based",
                            "--norandommap", *arguments)
    return job and job["read"]["iops"]


def measure_all(options, contenders):
    """{pattern: {name: median reads per second}}"""
    samples = {pattern: {c.name: [] for c in contenders} for pattern in PATTERNS}
    for _ in range(options.rounds):
        for pattern, arguments in PATTERNS.items():
            for contender in contenders:
                samples[pattern][contender.name].append(
                    reads_per_second(contender, options, arguments))
    return {pattern: {name: median(values) for name, values in by_name.items()}
            for pattern, by_name in samples.items()}


def print_table(options, figures, contenders):
    names = [contender.name for contender in contenders]
    first = names[0]
    print(f"reads per second, one layer, {options.size} MiB, page cache warm, "
          f"median of {options.rounds} × {options.seconds:g} s; in brackets: {first} ÷ that\n")
    print(f"{'':28}" + "".join(f"{name:>28}" for name in names))
    for pattern, by_name in figures.items():
        row = f"{pattern:28}{by_name[first]:>28,.0f}"
        for name in names[1:]:
            row += f"{cell(by_name[first], by_name[name]):>28}"
        print(row)
    for contender in contenders:
        if contender.stalls:
            print(f"\n{contender.name}: lost a read and had to be started anew "
                  f"{contender.stalls} times")


def main():
    options = parse_arguments("tests/bench/nbd_read", 512, 3, 3)
    private_home()
    servers, contenders = [], []
    with tempfile.TemporaryDirectory(prefix="cairn-bench") as name:
        folder = pathlib.Path(name)
        (folder / "cairn").mkdir()
        try:
            start_all(folder, make_image(folder, options.size * MIB), servers, contenders)
            figures = measure_all(options, contenders)
        finally:
            for process in contenders + servers[::-1]:
                process.stop()
    if options.json:
        print(json.dumps({"bench": "nbd_read", "sizeMiB": options.size, "seconds": options.seconds,
                          "rounds": options.rounds, "unit": "reads/s", "figures": figures,
                          "stalls": {c.name: c.stalls for c in contenders},
                          "time": int(time.time())}, indent=2))
    else:
        print_table(options, figures, contenders)


if __name__ == "__main__":
    main()
