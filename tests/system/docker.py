# SPDX-License-Identifier: Apache-2.0
"""A Docker engine of a test's own: dockerd with its data in the test's folder, images of
deploy/Dockerfile, projects of docker-compose.

The engine touches nothing of the host that would outlive it: no default bridge, no packet filter, no
forwarding.  Containers reach each other over the bridge of their project, which goes with it, and are
reached through ports of 127.0.0.1; they reach nobody outside.  What is built uses the host's network, for
apt-get.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import unittest

from cairntest import ROOT, Process, run, wait_for

BASE = ROOT / ".cache" / "base.tar"
TARGETS = ("cairnd", "cairn", "redis", "haproxy", "prometheus")


def docker_command():
    """The one that belongs to Debian's engine, if there are several: it brings BuildKit."""
    debian = "/usr/bin/docker"
    return debian if os.path.exists(debian) else shutil.which("docker")


def missing():
    """Why no engine can run here; None: nothing is missing that can be told in advance."""
    if os.geteuid() != 0:
        return "only root can run a Docker engine"
    for program in ("dockerd", "docker-compose"):
        if not shutil.which(program):
            return f"{program} is not installed"
    return None if docker_command() else "docker is not installed"


class Engine(Process):
    """dockerd; raises SkipTest where one cannot run."""

    def __init__(self):
        if reason := missing():
            raise unittest.SkipTest(reason)
        if not BASE.exists():
            raise unittest.SkipTest(f"no base system: {BASE} could not be made")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="docker"))
        self.socket = f"unix://{self.folder}/sock"
        self.env = {"DOCKER_HOST": self.socket, "DOCKER_BUILDKIT": "1",
                    "DOCKER_CONFIG": str(self.folder / "config")}
        super().__init__(["dockerd", "--host", self.socket, "--data-root", self.folder / "data",
                          "--exec-root", self.folder / "exec", "--pidfile", self.folder / "pid",
                          "--bridge=none", "--iptables=false", "--ip6tables=false",
                          "--ip-forward=false"], self.folder / "dockerd.log")
        try:
            wait_for(lambda: not self.running or self.answers(), "dockerd to answer", 60)
        except BaseException:
            self.remove()
            raise
        if not self.running:
            reason = self.text().strip().splitlines()[-1]
            self.remove()
            raise unittest.SkipTest(f"dockerd does not run here: {reason}")

    def answers(self):
        return self("version", code=None).code == 0

    def __call__(self, *arguments, **options):
        return run(docker_command(), *arguments, env=self.env, **options)

    def remove(self):
        """End it, and take its data away."""
        try:
            if self.running:
                self.stop(timeout=60)
        finally:
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)

    def build(self, tag, *arguments):
        """All images of deploy/Dockerfile, at the same time: they share a stage."""
        self("import", BASE, "debian:bookworm-slim", timeout=300)
        builds = [(target, subprocess.Popen(
            [docker_command(), "build", "--network=host", "--progress=plain", *arguments,
             "--file", ROOT / "deploy" / "Dockerfile", "--target", target,
             "--tag", f"cairn/{target}:{tag}", ROOT],
            env=dict(os.environ, **self.env), stdin=subprocess.DEVNULL,
            stdout=open(self.folder / f"build-{target}.log", "wb"), stderr=subprocess.STDOUT))
            for target in TARGETS]
        for target, process in builds:
            if process.wait() != 0:
                said = (self.folder / f"build-{target}.log").read_text(errors="replace")
                raise AssertionError(f"docker build of {target} failed:\n{said[-4000:]}")

    def inspect(self, name, kind="container"):
        return json.loads(self(kind, "inspect", name).stdout)[0]

    def left(self):
        """What there is besides images and the networks of every engine."""
        networks = self("network", "ls", "--format", "{{.Name}}").stdout.decode().split()
        return {"containers": self("ps", "--all", "--quiet").stdout.decode().split(),
                "volumes": self("volume", "ls", "--quiet").stdout.decode().split(),
                "networks": [name for name in networks if name not in ("host", "none")]}


class Project:
    """One of deploy/docker-compose*.yml, up."""

    def __init__(self, engine, file, **settings):
        self.engine, self.name = engine, f"test{os.getpid()}"
        self.argv = ["docker-compose", "--project-name", self.name, "--file", ROOT / "deploy" / file]
        self.env = dict(engine.env, **settings)

    def compose(self, *arguments, **options):
        return run(*self.argv, *arguments, env=self.env, **options)

    def services(self):
        return self.compose("config", "--services").stdout.decode().split()

    def container(self, service):
        return f"{self.name}_{service}_1"

    @property
    def network(self):
        return f"{self.name}_default"

    def up(self):
        self.compose("up", "--detach", "--no-build")
        for service in self.services():
            self.wait_healthy(service)

    def state(self, service):
        return self.engine.inspect(self.container(service))["State"]

    def healthy(self, service):
        return self.state(service).get("Health", {}).get("Status") == "healthy"

    def wait_healthy(self, service):
        wait_for(lambda: self.healthy(service), f"{service} to be healthy", 120)

    def crash(self, service):
        """SIGKILL to its first process, by the host: for the engine it died by itself, and is restarted."""
        pid = self.state(service)["Pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.state(service)["Pid"] not in (0, pid), f"{service} to come back", 60)
        self.wait_healthy(service)

    def logs(self):
        return self.compose("logs", "--no-color", "--tail=60", code=None).stdout.decode(errors="replace")

    def down(self):
        self.compose("down", "--volumes", "--timeout", "60", timeout=300)
