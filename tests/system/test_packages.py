#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Debian packages: what lintian and systemd say of them, and a life of theirs in a minimal Debian
that is not this host: installed, used, removed, purged."""

import os
import pathlib
import re
import shutil
import stat
import tempfile

import qemu
from cairntest import (MIB, ROOT, SANITIZER, Case, Process, first_difference, main, random_bytes, run,
                       seeded, wait_for)
from docker import BASE
from nbdclient import NbdClient
from redis import free_port

PACKAGES = ("cairn-server", "cairn", "libcairn0", "libcairn-dev")
UNITS = ("cairnd.service", "cairn-disk@.service")
EXPOSURE_MAX = 2.0  # of 10, by systemd-analyze security; 2 and less is what it calls OK
SCRATCH = re.compile(r"^(proc|sys|dev|run|tmp|var/(log|cache/(apt|debconf|ldconfig|man)|lib/(apt|dpkg)))(/|$)"
                     r"|^etc/[^/]+-$|^etc/ld\.so\.cache$|^etc/mtab$")

# What it does to mounts goes with it, and so does whatever it left running.
ENTER = """
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
root=$1; shift
exec chroot "$root" "$@"
"""


class Root:
    """A minimal Debian in a folder."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        run("tar", "-C", folder, "-xf", BASE, timeout=300)
        for name in ("proc", "dev", "sys"):
            (folder / name).mkdir(exist_ok=True)
        shutil.copy("/etc/resolv.conf", folder / "etc" / "resolv.conf")
        policy = folder / "usr" / "sbin" / "policy-rc.d"  # no service of its own starts in here
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)

    def argv(self, *command):
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", ENTER, "enter",
                self.folder, *command]

    def run(self, *command, **options):
        return run(*self.argv(*command), env={"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C",
                                              "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, **options)

    def apt(self, *command):
        return self.run("apt-get", "-q", "-y", "-o", "Acquire::Retries=3", *command, timeout=300)

    def files(self):
        """Everything that is not scratch: {path: kind, rights and owner}; and the users."""
        found = {}
        for folder, folders, names in os.walk(self.folder):
            for name in folders + names:
                path = pathlib.Path(folder, name)
                inside = str(path.relative_to(self.folder))
                if not SCRATCH.match(inside):
                    st = path.lstat()
                    found[inside] = (stat.filemode(st.st_mode), st.st_uid, st.st_gid)
        for name in ("passwd", "group", "shadow", "gshadow"):
            for line in (self.folder / "etc" / name).read_text().splitlines():
                found[f"etc/{name}: {line.split(':')[0]}"] = None
        return found


class Packages(Case):
    @classmethod
    def setUpClass(cls):
        cls.skipped = "packages are made without sanitizers; the dev preset has this" if SANITIZER else ""
        if cls.skipped:
            return
        cls.shared = pathlib.Path(tempfile.mkdtemp(prefix="packages"))
        cls.addClassCleanup(shutil.rmtree, cls.shared, ignore_errors=True)
        build = cls.shared / "build"
        run("cmake", "-S", ROOT, "--preset", "package", "-B", build)
        run("ninja", "-C", build, timeout=900)
        cls.debs = cls.shared / "debs"
        run("cpack", "--config", build / "CPackConfig.cmake", "-B", cls.debs)

    def setUp(self):
        if self.skipped:
            self.skipTest(self.skipped)
        super().setUp()
        self.rng = seeded(self.id())

    def deb(self, name):
        return next(self.debs.glob(f"{name}_*.deb"))

    def depends(self, name):
        field = run("dpkg-deb", "--field", self.deb(name), "Depends").stdout.decode()
        return [re.split(r"[ (|]", word.strip())[0] for word in field.split(",") if word.strip()]

    def make_root(self):
        """With what our packages depend on, so that what changes from now on is their doing."""
        if os.geteuid() != 0:
            self.skipTest("only root can enter another system")
        if not BASE.exists():
            self.skipTest(f"no base system: {BASE} could not be made")
        root = Root(self.tmp / "root")
        depends = {name for package in PACKAGES for name in self.depends(package)} - set(PACKAGES)
        root.apt("update")
        root.apt("install", "--no-install-recommends", *sorted(depends))
        shutil.copytree(self.debs, root.folder / "tmp" / "debs", ignore=shutil.ignore_patterns("_*"))
        return root

    def install(self, root):
        root.apt("install", "--no-install-recommends",
                 *(f"/tmp/debs/{self.deb(name).name}" for name in PACKAGES))

    def test_lintian(self):
        run("lintian", "--allow-root", "--fail-on", "error", *map(self.deb, PACKAGES))

    def test_packages_depend_on_what_they_use(self):
        self.assertIn("libmicrohttpd12", self.depends("cairn-server"))
        self.assertNotIn("libcairn0", self.depends("cairn-server"))
        self.assertIn("libcairn0", self.depends("cairn"))
        self.assertIn("nbdkit", self.depends("cairn"))
        self.assertTrue(any(name.startswith("libcurl") for name in self.depends("libcairn0")))

    def test_units(self):
        """As systemd sees them in the packages' own tree."""
        tree = self.folder("tree")
        for name in ("cairn-server", "cairn"):
            run("dpkg-deb", "-x", self.deb(name), tree)
        (tree / "bin").symlink_to("usr/bin")
        (tree / "usr/bin/kill").write_text("")
        (tree / "usr/bin/kill").chmod(0o755)
        units = tree / "usr/lib/systemd/system"
        for name in ("network-online.target", "sysinit.target", "basic.target", "shutdown.target"):
            (units / name).write_text("[Unit]\nDescription=stand-in\n")
        for unit in UNITS:
            instance = unit.replace("@.", "@vm1.")
            said = run("systemd-analyze", "verify", "--man=no", f"--root={tree}", instance)
            self.assertEqual(said.stderr.decode(), "", unit)
            said = run("systemd-analyze", "security", "--offline=true", "--no-pager", f"--root={tree}",
                       f"--threshold={EXPOSURE_MAX * 10:.0f}", instance)
            print(f"  {unit}: {said.last_line.strip()}", flush=True)

    def test_purge_leaves_nothing(self):
        root = self.make_root()
        before = root.files()
        self.install(root)
        self.assertNotEqual(root.files(), before)
        root.run("dpkg", "--purge", *PACKAGES)
        self.assertEqual(self.difference(before, root.files()), {})

    def difference(self, before, after):
        return {path: (before.get(path), after.get(path)) for path in sorted(before.keys() | after.keys())
                if before.get(path, 0) != after.get(path, 0)}

    def test_use_remove_and_purge(self):
        """A store outlives its packages, with the user that it belongs to, and is found again."""
        root = self.make_root()
        before = root.files()
        self.install(root)
        installed = root.files()
        self.assertEqual(installed["var/lib/cairn"][0], "drwxr-x---")
        self.assertIn("etc/passwd: cairn", installed)
        self.use(root, first=True)
        root.run("dpkg", "--remove", *PACKAGES)
        left = self.difference(before, root.files())
        self.assertIn("etc/cairn/cairnd.conf", left)
        self.assertNotIn("usr/bin/cairnd", left)
        root.run("dpkg", "--purge", *PACKAGES)
        left = self.difference(before, root.files())
        self.assertTrue(left)
        self.assertEqual([path for path in left if not re.match(r"var/lib/cairn(/|$)", path)],
                         ["etc/group: cairn", "etc/gshadow: cairn", "etc/passwd: cairn",
                          "etc/shadow: cairn"])
        self.install(root)
        self.use(root, first=False)

    def use(self, root, first):
        """The packaged service, command and plugin, together."""
        port = free_port()
        server = self.own(Process(
            root.argv("setpriv", "--reuid=cairn", "--regid=cairn", "--init-groups", "/usr/bin/cairnd",
                      "--config", "/etc/cairn/cairnd.conf", "--listen", f"127.0.0.1:{port}"),
            self.tmp / f"server-{first}.log"))
        wait_for(lambda: server.check_running() and "event=ready" in server.text(), "cairnd")
        url = f"--server=http://127.0.0.1:{port}"
        raw = self.tmp / "image.raw"
        if first:
            raw.write_bytes(random_bytes(self.rng, 4 * MIB))
            qemu.img("convert", "-f", "raw", "-O", "qcow2", raw, root.folder / "tmp" / "image.qcow2")
            root.run("cairn", "push", url, "/tmp/image.qcow2", "demo/vm:v1")
        attachment = self.own(Process(
            root.argv("cairn", "attach", url, "--read-only", "--socket", "/tmp/nbd.sock", "demo/vm:v1"),
            self.tmp / f"attach-{first}.log"))
        wait_for(lambda: attachment.check_running() and "nbd+unix" in attachment.text(), "attach")
        disk = NbdClient(str(root.folder / "tmp" / "nbd.sock"))
        self.assertIsNone(first_difference(disk.read(0, 4 * MIB), raw.read_bytes()))
        disk.close()
        for process in (attachment, server):  # unshare is in between, and passes no signal on
            self.processes.remove(process)
            self.end_inside(process)

    def end_inside(self, process):
        inner = process.pid
        children = pathlib.Path(f"/proc/{inner}/task/{inner}/children").read_text().split()
        os.kill(int(children[0]), 15)
        process.wait()

    def test_configuration_sample(self):
        """Every line of it that is commented out is one that could be used, and shows the default."""
        sample = (ROOT / "deploy" / "cairnd.conf").read_text()
        used = re.sub(r"^#(?=[a-z-]+ = )", "", sample, flags=re.M)
        self.assertGreater(used.count("\n"), 5)
        port = self.folder("server") / "port"
        config = self.tmp / "cairnd.conf"
        config.write_text(used)
        binary = self.shared / "build" / "bin" / "cairnd"
        server = self.own(Process([binary, "--config", config, "--listen", "127.0.0.1:0", "--store",
                                   f"fs:{self.tmp}/store", "--redis", "127.0.0.1:1", "--port-file", port],
                                  self.tmp / "server.log"))
        wait_for(lambda: server.check_running() and port.exists(), "cairnd with the sample")
        defaults = run(binary, "--help").stdout.decode()
        for name, value in re.findall(r"^#([a-z-]+) = (.*)$", sample, re.M):
            if name != "redis":
                self.assertRegex(defaults, rf"--{name} <.*>\n.*\n +default {re.escape(value)}[;\n]")


if __name__ == "__main__":
    main()
