# SPDX-License-Identifier: Apache-2.0
"""The harness of the system tests: temporary folders, programs under test, the commands that are
our oracles, and a main() that reports to tests/runner.py.

Rules: a test waits for conditions, never for time, and every wait has an end; it uses port 0 and
its own folder; what it starts it ends by PID, also when it fails; a failure prints what ran, what
it said, and the logs of the programs that were running.
"""

import argparse
import atexit
import contextlib
import ctypes
import faulthandler
import functools
import http.client
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("CAIRN_BUILD", ROOT / "build"))
CAIRN = BUILD / "bin" / "cairn"
CAIRND = BUILD / "bin" / "cairnd"
SCALE = os.environ.get("CAIRN_TEST_SCALE", "normal")
SEED = int(os.environ.get("CAIRN_TEST_SEED") or random.randrange(1 << 32))

KIB, MIB = 1 << 10, 1 << 20


def scaled(quick, normal, long):
    """How many cases: of tests/run --quick, without an option, --long."""
    return {"quick": quick, "normal": normal, "long": long}[SCALE]


def seeded(name):
    """A generator of random numbers of its own for each name, all from the run's one seed."""
    return random.Random(f"{SEED}/{name}")


def sanitizer():
    """What the build is instrumented with: "", "address,undefined" or "thread"."""
    cache = BUILD / "CMakeCache.txt"
    found = re.search(r"^CAIRN_SANITIZE:\w+=(.*)$", cache.read_text(), re.M)
    return found[1] if found else ""


SANITIZER = sanitizer() if (BUILD / "CMakeCache.txt").exists() else ""
SLOWER = 5 if SANITIZER else 1  # factor for all time limits


def sanitizer_finding(text):
    """Did a sanitizer find something?  What nbdkit itself leaks is not ours: a leak counts if
    anything of the project's allocated it."""
    if re.search(r"ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error:", text):
        return True
    leaks = re.split(r"\n(?=(?:Direct|Indirect) leak of )", text)[1:]
    return any(str(ROOT) in leak or str(BUILD) in leak for leak in leaks)


# -- Commands -------------------------------------------------------------------------------------

class CommandFailed(AssertionError):
    pass


class Result:
    def __init__(self, argv, code, stdout, stderr):
        self.argv, self.code, self.stdout, self.stderr = argv, code, stdout, stderr

    @property
    def last_line(self):
        return self.stdout.decode().strip().splitlines()[-1]

    def json(self):
        return json.loads(self.stdout)

    def describe(self):
        def tail(data):
            return data[-4000:].decode(errors="replace")
        return (f"$ {shlex.join(map(str, self.argv))}\nexit code {self.code}\n"
                f"stdout: {tail(self.stdout)}\nstderr: {tail(self.stderr)}")


def children(pid):
    """PIDs whose parent is pid."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = pathlib.Path(entry.path, "stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def thread_states(pid):
    """One letter for each thread, as in /proc; none if the process is gone."""
    states = []
    for stat in pathlib.Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            states.append(stat.read_text().rpartition(")")[2].split()[0])
    return states


def kill_tree(pid):
    """SIGKILL to a process and all that it started."""
    for child in children(pid):
        kill_tree(child)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def run(*argv, code=0, timeout=120, stdin=b"", env=None, cwd=None):
    """Run a command to its end; code is the exit code it must have, None for any."""
    argv = [str(a) for a in argv]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cwd,
                               stderr=subprocess.PIPE, env=dict(os.environ, **(env or {})))
    try:
        stdout, stderr = process.communicate(stdin, timeout * SLOWER)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        stdout, stderr = process.communicate()
        stderr += f"\n(killed after {timeout * SLOWER} s)".encode()
    except BaseException:
        kill_tree(process.pid)
        process.wait()
        raise
    result = Result(argv, process.returncode, stdout, stderr)
    if code is not None and result.code != code:
        raise CommandFailed(result.describe())
    if sanitizer_finding(stderr.decode(errors="replace")):
        raise CommandFailed(result.describe())
    return result


def wait_for(condition, what, timeout=30):
    """Until condition() gives something true, which is returned; polled: no event covers all."""
    deadline = time.monotonic() + timeout * SLOWER
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout * SLOWER} s for {what}")
        time.sleep(0.005)


class Process:
    """A program in the background, its stdout and stderr in a log file."""

    def __init__(self, argv, log, env=None, cwd=None):
        self.argv, self.log = [str(a) for a in argv], pathlib.Path(log)
        self.ended_well = False
        with open(self.log, "ab") as out:
            self.popen = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=out,
                                          stderr=subprocess.STDOUT, cwd=cwd,
                                          env=dict(os.environ, **(env or {})))

    @property
    def pid(self):
        return self.popen.pid

    @property
    def running(self):
        return self.popen.poll() is None

    def text(self):
        return self.log.read_text(errors="replace")

    def describe(self):
        state = "running" if self.running else f"exit code {self.popen.returncode}"
        return f"$ {shlex.join(self.argv)}\n{state}\nlog: {self.text()[-6000:]}"

    def check_running(self):
        if not self.running:
            raise CommandFailed(self.describe())
        return True

    def wait(self, code=0, timeout=60):
        try:
            self.popen.wait(timeout * SLOWER)
        except subprocess.TimeoutExpired:
            raise CommandFailed(f"still running after {timeout * SLOWER} s\n{self.describe()}") \
                from None
        if code is not None and self.popen.returncode != code:
            raise CommandFailed(self.describe())
        if sanitizer_finding(self.text()):
            raise CommandFailed(self.describe())
        self.ended_well = True

    def stop(self, code=0, timeout=60):
        """SIGTERM, and wait for a graceful end; fine if a test has waited for its end already."""
        if self.ended_well:
            return
        self.check_running()
        self.popen.send_signal(signal.SIGTERM)
        self.wait(code, timeout)

    def pause(self):
        """SIGSTOP; when this returns no thread of it runs any more."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_for(self.is_paused, "every thread to stop")

    def is_paused(self):
        return set(thread_states(self.pid)) <= {"T"}

    def go_on(self):
        os.kill(self.pid, signal.SIGCONT)

    def kill(self):
        """SIGKILL; fine if it has ended already."""
        if self.running:
            self.popen.kill()
        self.popen.wait()
        self.ended_well = True

    def kill_with_children(self):
        """SIGKILL to it and to all that it has started, which holds no file any more when this returns."""
        pids = []
        if self.running:
            os.kill(self.pid, signal.SIGSTOP)  # so that it starts nothing more
            wait_for(lambda: not self.running or self.is_paused(), "it to stop")
            pids = children(self.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kill()
        wait_for(lambda: all(set(thread_states(pid)) <= {"Z", "X"} for pid in pids), "its children to end")


# -- HTTP -----------------------------------------------------------------------------------------

class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        """The code and message of an OCI error body."""
        first = self.json()["errors"][0]
        return first["code"], first["message"]


class Http:
    """Requests, one connection each, to one server; context: an ssl.SSLContext, if it has TLS."""

    def __init__(self, port, timeout=120, context=None):
        self.port, self.timeout, self.context = port, timeout * SLOWER, context

    def connect(self):
        if self.context:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=self.timeout,
                                               context=self.context)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)

    def request(self, method, path, body=None, headers=None):
        connection = self.connect()
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.request("GET", path, headers={k.replace("_", "-"): v
                                                  for k, v in headers.items()})

    def data(self, ref):
        """All guest bytes of a disk."""
        answer = self.get(f"/v1/disks/{ref}/data")
        assert answer.status == 200, (answer.status, answer.body[:2000])
        return answer.body

    def extents(self, ref, query=""):
        answer = self.get(f"/v1/disks/{ref}/extents{query}")
        assert answer.status == 200, (answer.status, answer.body[:2000])
        return answer.json()

    def upload(self, repo, data, digest):
        """POST and PUT of one blob; the answer of the PUT."""
        started = self.request("POST", f"/v2/{repo}/blobs/uploads/")
        assert started.status == 202, (started.status, started.body[:2000])
        return self.request("PUT", with_query(location_path(started), digest=digest), data,
                            {"Content-Type": "application/octet-stream"})


def location_path(answer):
    """Path and query of a Location, which may be absolute."""
    parts = urllib.parse.urlsplit(answer.headers["Location"])
    return parts.path + (f"?{parts.query}" if parts.query else "")


def with_query(path, **values):
    return path + ("&" if "?" in path else "?") + urllib.parse.urlencode(values)


# -- Programs under test --------------------------------------------------------------------------

class Cairnd(Process):
    """A server on a free port of 127.0.0.1; delay: milliseconds to its store; context: for its
    clients, if its arguments give it TLS."""

    def __init__(self, folder, store=None, arguments=(), wrapper=(), env=None, delay=None,
                 context=None):
        folder = pathlib.Path(folder)
        self.store = pathlib.Path(store or folder / "store")
        port_file = folder / "port"
        port_file.unlink(missing_ok=True)
        super().__init__([*wrapper, CAIRND, "--listen", "127.0.0.1:0", "--store",
                          f"{'' if delay is None else f'slow:{delay}:'}fs:{self.store}",
                          "--port-file", port_file, *arguments],
                         folder / "cairnd.log", env=env)
        try:
            wait_for(lambda: self.check_running() and port_file.exists()
                     and port_file.read_text().endswith("\n"), "cairnd's port file")
            self.port = int(port_file.read_text().strip().rpartition(":")[2])
            self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}"
            self.http = Http(self.port, context=context)
            wait_for(lambda: self.check_running() and self.healthy(), "/healthz")
        except BaseException:
            self.kill()
            raise

    def healthy(self):
        try:
            return self.http.get("/healthz").status == 200
        except OSError:
            return False

    def cairn(self, *arguments, **options):
        """The cairn command, against this server."""
        env = dict(options.pop("env", {}), CAIRN_SERVER=self.url)
        return run(CAIRN, *arguments, env=env, **options)

    def metrics(self):
        """What /metrics says: {name with its labels: value}."""
        lines = self.http.get("/metrics").body.decode().splitlines()
        return {name: float(value) for name, _, value in
                (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    def push(self, file, ref, *arguments):
        """Push; the ref by digest that it printed."""
        return self.cairn("push", *arguments, file, ref).last_line

    def files(self):
        """Every file of the store, with its size, except what only lives while a server does."""
        return {str(path.relative_to(self.store)): path.stat().st_size
                for path in self.store.rglob("*") if path.is_file()}


# Under a preloaded sanitizer runtime, freelocale() after strerror() waits for ever with glibc 2.36:
# any nbdkit that has reported an error hangs in the exit handler of one of its libraries.
WITHOUT_FREELOCALE = "void freelocale(void *l); void freelocale(void *l) { (void) l; }"


@functools.cache
def preload():
    """A sanitized plugin needs its runtime in nbdkit before anything else."""
    library = {"address,undefined": "libasan.so", "thread": "libtsan.so"}.get(SANITIZER)
    if not library:
        return {}
    runtime = run("gcc", f"-print-file-name={library}").stdout.decode().strip()
    shim = pathlib.Path(os.environ["HOME"]) / "without-freelocale.so"
    run("gcc", "-shared", "-fPIC", "-x", "c", "-o", shim, "-", stdin=WITHOUT_FREELOCALE.encode())
    # nbdkit leaks a little of its own: sanitizer_finding() tells whose a leak is.
    return {"LD_PRELOAD": f"{runtime}:{shim}", "LSAN_OPTIONS": "exitcode=0"}


def socket_of(uri):
    """The path in an nbd+unix URI."""
    return urllib.parse.parse_qs(urllib.parse.urlsplit(uri.strip()).query)["socket"][0]


class Attachment(Process):
    """`cairn attach` in the foreground; .uri and .socket are for NBD clients."""

    def __init__(self, server_url, log, *arguments):
        log = pathlib.Path(log)
        offset = log.stat().st_size if log.exists() else 0
        super().__init__([CAIRN, "attach", *arguments], log,
                         env=dict(preload(), CAIRN_SERVER=server_url))
        try:
            self.uri = wait_for(lambda: self.check_running() and self.find_uri(offset),
                                "attach to print a URI")
        except BaseException:
            self.end()
            raise
        self.socket = socket_of(self.uri)

    def find_uri(self, offset):
        found = re.search(r"^(nbd\+unix://\S+)$", self.text()[offset:], re.M)
        return found and found[1]

    @property
    def nbdkit_pid(self):
        """The process that holds the disk: attach's child, or attach itself if it became nbdkit."""
        for pid in [*children(self.pid), self.pid]:
            with contextlib.suppress(OSError):
                if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "nbdkit":
                    return pid
        raise AssertionError(f"no nbdkit below {self.describe()}")

    def crash(self):
        """SIGKILL to the process that holds the disk, then let attach notice."""
        with contextlib.suppress(AssertionError, ProcessLookupError):
            os.kill(self.nbdkit_pid, signal.SIGKILL)
        self.wait(code=None)

    def end(self):
        """However it stands, end it and what it started."""
        self.kill_with_children()


# -- Tests ----------------------------------------------------------------------------------------

class Case(unittest.TestCase):
    """A test with a folder of its own (self.tmp), whose programs end with it."""

    def setUp(self):
        self.tmp = pathlib.Path(tempfile.mkdtemp(prefix="t"))
        self.processes = []
        self.addCleanup(self._clean_up)

    def _clean_up(self):
        failed = not self._outcome.success
        try:
            if not failed:
                self.stop_all()  # that they end well is part of every test
        finally:
            for process in reversed(self.processes):
                print(process.describe(), file=sys.stderr)
                process.end() if isinstance(process, Attachment) else process.kill()
            if failed and os.environ.get("CAIRN_TEST_KEEP"):
                print(f"kept: {self.tmp}", file=sys.stderr)
            else:
                shutil.rmtree(self.tmp, ignore_errors=True)

    def folder(self, name):
        path = self.tmp / name
        path.mkdir(exist_ok=True)
        return path

    def own(self, process):
        """Have a process ended with the test."""
        self.processes.append(process)
        return process

    def start(self, argv, name, **options):
        return self.own(Process(argv, self.tmp / f"{name}.log", **options))

    def cairnd(self, name="server", **options):
        return self.own(Cairnd(self.folder(name), **options))

    def attach(self, server, *arguments, name="attach"):
        return self.own(Attachment(server.url, self.tmp / f"{name}.log", *arguments))

    def stop_all(self):
        """End everything gracefully, last started first, and look at how each ended."""
        while self.processes:
            self.processes[-1].stop()
            self.processes.pop()


class Reporter(unittest.TestResult):
    """One line for each test on stdout, one JSON line in the report."""

    def __init__(self, report):
        super().__init__()
        self.report, self.started = report, 0.0

    def startTest(self, test):
        super().startTest(test)
        self.started = time.monotonic()

    def _finish(self, test, outcome, word, note=""):
        seconds = time.monotonic() - self.started
        print(f"{word:5} {test_name(test):44} {seconds:7.1f} s{note}", flush=True)
        if self.report:
            with open(self.report, "a", encoding="utf-8") as out:
                out.write(json.dumps([test_name(test), outcome]) + "\n")

    def _fail(self, test, err):
        self._finish(test, "failed", "FAIL")
        traceback.print_exception(*err)
        print(f"(seed {SEED})", file=sys.stderr, flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self._finish(test, "passed", "ok")

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._fail(test, err)

    def addError(self, test, err):
        super().addError(test, err)
        if isinstance(test, unittest.TestCase):
            self._fail(test, err)
        else:  # a setUpClass: its tests have no result, which the runner counts as failures
            traceback.print_exception(*err)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._finish(test, "skipped", "skip", f"  {reason}")

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            print(f"in {subtest}", file=sys.stderr)
            self._fail(test, err)


def test_name(test):
    module = pathlib.Path(sys.argv[0]).stem.removeprefix("test_")
    method = test.id().rpartition(".")[2].removeprefix("test_")
    return f"system/{module}/{method}"


def raise_interrupt(_signum, _frame):
    raise KeyboardInterrupt


def flatten(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


def private_home():
    """What the client remembers for its user lives and ends with this process."""
    home = tempfile.mkdtemp(prefix="home")
    os.environ.update(HOME=home, XDG_STATE_HOME=f"{home}/state", XDG_CACHE_HOME=f"{home}/cache")
    atexit.register(shutil.rmtree, home, ignore_errors=True)


def end_orphans():
    """What daemonised below this process and was not ended by its test."""
    for pid in children(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def main():
    faulthandler.register(signal.SIGUSR1)
    parser = argparse.ArgumentParser(description="Run this file's tests.")
    parser.add_argument("--test", action="append", help="only these, by name; may be repeated")
    parser.add_argument("--report", help="append one JSON line for each test to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, raise_interrupt)
    private_home()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, so that orphans are ours
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])
    wanted = [test for test in flatten(suite)
              if not options.test or test_name(test) in options.test
              or test_name(test).rpartition("/")[2] in options.test]
    result = Reporter(options.report)
    if not options.report:
        print(f"seed {SEED}", flush=True)
    try:
        unittest.TestSuite(wanted).run(result)
    except KeyboardInterrupt:
        print("ended by a signal", file=sys.stderr)
        sys.exit(130)
    finally:
        end_orphans()
    sys.exit(0 if result.wasSuccessful() else 1)


# -- Bytes ----------------------------------------------------------------------------------------

def random_bytes(rng, length):
    return rng.randbytes(length)


def first_difference(a, b):
    """None if equal, else a short description of where they part."""
    if a == b:
        return None
    if len(a) != len(b):
        return f"lengths differ: {len(a)} and {len(b)}"
    step = 4096
    for off in range(0, len(a), step):
        if a[off:off + step] != b[off:off + step]:
            at = next(i for i in range(off, off + step) if a[i] != b[i])
            return f"at {at:#x}: {a[at:at + 16].hex()} and {b[at:at + 16].hex()}"
    return None


class Parallel:
    """Run a function over items on a few threads; the first failure ends it and is raised."""

    def __init__(self, workers=2):
        self.workers, self.failure, self.lock = workers, None, threading.Lock()

    def each(self, function, items):
        queue = iter(items)

        def work():
            while True:
                with self.lock:
                    if self.failure:
                        return
                    try:
                        item = next(queue)
                    except StopIteration:
                        return
                try:
                    function(item)
                except BaseException as error:  # handed to the caller below
                    with self.lock:
                        self.failure = self.failure or error
                    return
        threads = [threading.Thread(target=work) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failure:
            raise self.failure
