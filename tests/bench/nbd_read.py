# SPDX-License-Identifier: Apache-2.0
"""The core of tests/bench/nbd_read: makes the image, starts the three servers side by side, runs fio's
NBD engine against each in turn, several rounds, and prints medians and ratios.

All three read the same image file's bytes from the page cache, so what is compared is the path.  The
rounds interleave the servers, so that a machine that slows down slows all of them.

QEMU 7.2's HTTP driver, with several reads in flight, often loses one for ever.  A contender that does
not answer is started anew and measured again, some times; how often that was is printed, and a pattern that
gives no figure at all is printed as "stalls".
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "system"))
from cairntest import (Attachment, Cairnd, CommandFailed, MIB, Process, private_home,  # noqa: E402
                       run, wait_for)

PATTERNS = {
    "sequential 4 KiB, depth 1": ("--rw=read", "--iodepth=1"),
    "sequential 4 KiB, depth 16": ("--rw=read", "--iodepth=16"),
    "random 4 KiB, depth 1": ("--rw=randread", "--iodepth=1"),
    "random 4 KiB, depth 16": ("--rw=randread", "--iodepth=16"),
}
ATTEMPTS = 4


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/nbd_read")
    parser.add_argument("--size", type=int, default=512, help="MiB of the disk (512)")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement (3)")
    parser.add_argument("--rounds", type=int, default=3, help="medians are over these (3)")
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


def start_nginx(folder, servers):
    """nginx serving the folder on a free port; its URL."""
    for port in range(20000 + os.getpid() % 10000, 40000):
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.error;\n"
            "worker_processes 2; events {}\n"
            f"http {{ access_log off; sendfile on; keepalive_requests 1000000000;\n"
            f"client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;\n"
            f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
            f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
            + ("user root;\n" if os.geteuid() == 0 else ""))
        nginx = Process(["nginx", "-p", folder, "-c", folder / "nginx.conf"], folder / "nginx.log")
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: not nginx.running or answers(f"{url}/disk.qcow2"), "nginx")
        if nginx.running:
            servers.append(nginx)
            return url
    raise SystemExit(f"nginx does not start:\n{nginx.describe()}")


def answers(url):
    return run("qemu-img", "info", "-f", "raw", url, code=None).code == 0


class Contender:
    """Something that exports the disk over NBD; start() gives the process, with its .uri."""

    def __init__(self, name, start):
        self.name, self.start, self.stalls = name, start, 0
        self.process = start()

    def restart(self):
        self.process.kill()
        self.process = self.start()

    def measure(self, options, arguments):
        """Reads per second, by fio; None if it stalls again and again."""
        for _ in range(ATTEMPTS):
            try:
                return run_fio(self.process.uri, options, arguments)
            except CommandFailed:
                self.stalls += 1
                self.restart()
        return None


def start_qemu_nbd(folder, name, image):
    socket = folder / f"{name}.sock"
    socket.unlink(missing_ok=True)
    process = Process(["qemu-nbd", "-r", "-t", "-f", "qcow2", "-k", socket, "-e", "16", image],
                      folder / f"{name}.log")
    wait_for(lambda: process.check_running() and socket.exists(), "qemu-nbd's socket")
    process.uri = f"nbd+unix:///?socket={socket}"
    return process


def start_all(folder, image, servers, contenders):
    """What is compared, in the table's order."""
    server = Cairnd(folder / "cairn")
    servers.append(server)
    server.push(image, "bench:v1")
    nginx = start_nginx(folder, servers)
    for name, start in (
            ("cairn, remote", lambda: Attachment(server.url, folder / "attach.log", "bench:v1",
                                                 "--read-only")),
            ("qemu-nbd, local file", lambda: start_qemu_nbd(folder, "local", image)),
            ("qemu-nbd, HTTP from nginx", lambda: start_qemu_nbd(folder, "http",
                                                                 f"{nginx}/disk.qcow2"))):
        contenders.append(Contender(name, start))


def run_fio(uri, options, arguments):
    result = run("fio", "--name=read", "--ioengine=nbd", f"--uri={uri}", "--bs=4k", "--thread",
                 f"--size={options.size}M", f"--runtime={options.seconds}", "--time_based",
                 "--norandommap", "--randrepeat=0", "--output-format=json", *arguments,
                 cwd=tempfile.gettempdir(), timeout=options.seconds + 4)
    job = json.loads(result.stdout[result.stdout.index(b"{"):])["jobs"][0]
    if job["error"]:
        raise SystemExit(result.describe())
    return job["read"]["iops"]


def measure_all(options, contenders):
    """{pattern: {name: median reads per second}}"""
    samples = {pattern: {c.name: [] for c in contenders} for pattern in PATTERNS}
    for _ in range(options.rounds):
        for pattern, arguments in PATTERNS.items():
            for contender in contenders:
                samples[pattern][contender.name].append(contender.measure(options, arguments))
    return {pattern: {name: median(values) for name, values in by_name.items()}
            for pattern, by_name in samples.items()}


def median(values):
    measured = [value for value in values if value is not None]
    return statistics.median(measured) if measured else None


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


def cell(ours, theirs):
    return f"{theirs:,.0f} ({ours / theirs:.2f}×)" if theirs else "stalls"


def main():
    options = parse_arguments()
    private_home()
    servers, contenders = [], []
    with tempfile.TemporaryDirectory(prefix="cairn-bench") as name:
        folder = pathlib.Path(name)
        (folder / "cairn").mkdir()
        try:
            start_all(folder, make_image(folder, options.size * MIB), servers, contenders)
            figures = measure_all(options, contenders)
        finally:
            for process in [c.process for c in contenders] + servers[::-1]:
                process.stop(code=None)
    if options.json:
        print(json.dumps({"bench": "nbd_read", "sizeMiB": options.size, "seconds": options.seconds,
                          "rounds": options.rounds, "unit": "reads/s", "figures": figures,
                          "stalls": {c.name: c.stalls for c in contenders},
                          "time": int(time.time())}, indent=2))
    else:
        print_table(options, figures, contenders)


if __name__ == "__main__":
    main()
