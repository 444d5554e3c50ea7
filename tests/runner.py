#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The core of tests/run: runs the unit tests and fuzz corpora (ctest) and the system tests
(tests/system/test_*.py) of one build folder, and adds up what they report.

Every test process is a descendant of this one, also after its parent died (it is their
subreaper), so whatever a test leaves running is found, ended by its PID, and counted as a failure
of the file that left it.  Temporary files go with the run: all live in a folder of its own, those
of ctest in another one, in memory, where they need not wait for syncs.
"""

import argparse
import ast
import ctypes
import fnmatch
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

TESTS = pathlib.Path(__file__).resolve().parent
PR_SET_CHILD_SUBREAPER = 36
MEMORY, MEMORY_MIN = "/dev/shm", 2 << 30  # as tests/unit/scratch.h has it
FILE_TIMEOUT = {"quick": 600, "normal": 1800, "long": 6 * 3600}  # seconds; a bound, not a goal


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP arrived."""


class Tally:
    def __init__(self):
        self.passed, self.skipped, self.failures = 0, 0, []

    def add(self, name, outcome):
        if outcome == "passed":
            self.passed += 1
        elif outcome == "skipped":
            self.skipped += 1
        else:
            self.failures.append(name)


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/run")
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--quick", dest="scale", action="store_const", const="quick")
    parser.add_argument("--long", dest="scale", action="store_const", const="long")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--keep", action="store_true")
    parser.set_defaults(scale="normal")
    return parser.parse_args()


# -- What there is --------------------------------------------------------------------------------

def ctest_names(build):
    answer = subprocess.run(["ctest", "--test-dir", build, "--show-only=json-v1"],
                            check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    return [test["name"] for test in json.loads(answer.stdout)["tests"]]


def system_names(path):
    """Names of the tests in a file, without importing it: system/<file>/<method>."""
    tree = ast.parse(path.read_text())
    module = path.stem.removeprefix("test_")
    return [f"system/{module}/{item.name.removeprefix('test_')}"
            for node in tree.body if isinstance(node, ast.ClassDef)
            for item in node.body
            if isinstance(item, ast.FunctionDef) and item.name.startswith("test_")]


def select(names, patterns):
    def wanted(name):
        return not patterns or any(fnmatch.fnmatchcase(name, f"*{p}*") for p in patterns)
    return [name for name in names if wanted(name)]


# -- Processes ------------------------------------------------------------------------------------

def raise_interrupted(signum, _frame):
    raise Interrupted(signal.Signals(signum).name)


def adopt_orphans():
    """Become the parent of every descendant whose own parent dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def children(pid):
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = pathlib.Path(entry.path, "stat").read_text()
        except OSError:
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if int(parent) == pid and state != "Z":
            found.append(int(entry.name))
    return found


def descendants(pid):
    direct = children(pid)
    return direct + [below for child in direct for below in descendants(child)]


def command_line(pid):
    try:
        raw = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "?"
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def end_descendants():
    """Kill what is left; the command lines of what there was."""
    left = []
    deadline = time.monotonic() + 10
    while (pids := descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in pids:
            line = command_line(pid)
            if line not in left:
                left.append(line)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        reap()
        time.sleep(0.01)
    reap()
    return left


def end_process(process):
    """Ask it to clean up, insist after a while."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_process(argv, timeout, env):
    """The exit code, or None if it had to be ended at the timeout."""
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL)
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        end_process(process)
        return None
    except BaseException:
        end_process(process)
        raise


# -- Running --------------------------------------------------------------------------------------

def run_ctest(options, names, folder, env, tally):
    """Units and corpora, as many at a time as there are processors."""
    junit = folder / "ctest.xml"
    pattern = "^(" + "|".join(map(re.escape, names)) + ")$"
    run_process(["ctest", "--test-dir", options.build, "-R", pattern, "--output-on-failure",
                 "--no-tests=error", "--output-junit", junit, "-j", str(os.cpu_count())],
                FILE_TIMEOUT[options.scale], env)
    outcomes = {}
    if junit.exists():
        status = {"run": "passed", "notrun": "skipped", "disabled": "skipped"}
        for case in xml.etree.ElementTree.parse(junit).getroot().iter("testcase"):
            outcomes[case.get("name")] = status.get(case.get("status"), "failed")
    for name in names:
        tally.add(name, outcomes.get(name, "failed"))
    note_leftovers("ctest", tally)


def run_system_file(options, path, names, folder, env, tally):
    report = folder / f"{path.stem}.json"
    code = run_process([sys.executable, path, "--report", report,
                        *(option for name in names for option in ("--test", name))],
                       FILE_TIMEOUT[options.scale], env)
    if code is None:
        print(f"FAIL  {path.name}: ended after {FILE_TIMEOUT[options.scale]} s", flush=True)
    outcomes = {}
    if report.exists():
        outcomes = dict(json.loads(line) for line in report.read_text().splitlines())
    for name in names:
        if name not in outcomes:
            print(f"FAIL  {name}: no result", flush=True)
        tally.add(name, outcomes.get(name, "failed"))
    note_leftovers(path.name, tally)


def note_leftovers(what, tally):
    left = end_descendants()
    for line in left:
        print(f"FAIL  {what}: left running: {line}", flush=True)
    if left:
        tally.failures.append(f"{what}: left processes running")


def make_folder(base):
    return pathlib.Path(tempfile.mkdtemp(prefix="cairn-", dir=base))


def memory_base():
    """The counterpart of scratch_base() of tests/unit/scratch.h; None: the usual place."""
    given = os.environ.get("TMPDIR")
    if given or not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < MEMORY_MIN:
        return given
    return MEMORY


def run_all(options, folder, memory, tally):
    env = dict(os.environ, TMPDIR=str(folder), CAIRN_BUILD=str(options.build.resolve()),
               CAIRN_TEST_SCALE=options.scale, CAIRN_TEST_SEED=str(options.seed),
               CAIRN_TEST_KEEP="1" if options.keep else "", PYTHONDONTWRITEBYTECODE="1")
    units = select(ctest_names(options.build), options.only)
    if units:
        run_ctest(options, units, folder, dict(env, TMPDIR=str(memory)), tally)
    for path in sorted(TESTS.glob("system/test_*.py")):
        names = select(system_names(path), options.only)
        if names:
            run_system_file(options, path, names, folder, env, tally)


def print_names(options):
    names = ctest_names(options.build)
    for path in sorted(TESTS.glob("system/test_*.py")):
        names += system_names(path)
    print("\n".join(select(names, options.only)))


def summarise(tally, started):
    for name in tally.failures:
        print(f"failed: {name}")
    print(f"{time.monotonic() - started:.0f} s")
    print(f"{tally.passed} passed, {len(tally.failures)} failed, {tally.skipped} skipped", flush=True)


def main():
    options = parse_arguments()
    if options.list:
        print_names(options)
        return 0
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, raise_interrupted)
    adopt_orphans()
    print(f"seed {options.seed}", flush=True)
    tally, started = Tally(), time.monotonic()
    folder, memory = make_folder(os.environ.get("TMPDIR")), make_folder(memory_base())
    try:
        run_all(options, folder, memory, tally)
    except Interrupted as signame:
        print(f"ended by {signame}", flush=True)
        tally.failures.append(f"ended by {signame}")
    finally:
        end_descendants()
        if not (options.keep and tally.failures):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(memory, ignore_errors=True)
    summarise(tally, started)
    if not tally.failures and not tally.passed:
        print("no test has such a name", file=sys.stderr)
        return 2
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
