#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clients of one server, as a program of its own: each has a repository to itself, a connection that it
keeps, and a picture of what must be there.  They push (at once, in chunks, by mount), tag, delete, list
and read whole and in ranges at random, compare every byte, and go on until a file appears; then each
looks at all that it has.

    load_clients.py --port N --first N --clients N --until FILE [--outages] [--shared DIGEST:SIZE]

With --outages the server may vanish at any time: a request that was not answered has been done or has
not, and either is right from then on, until it is seen which.  What was acknowledged must be there.
Ends with one line of JSON, or with exit code 1 and what was wrong."""

import argparse
import functools
import hashlib
import http.client
import json
import os
import pathlib
import random
import socket
import sys
import threading
import time

from cairntest import SEED, SLOWER

NR_BLOBS = 8  # that a client knows: what is stored is bounded, however long it runs
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TAGS = ("v1", "v2", "v3")
PATIENCE = 300 * SLOWER  # seconds, for a server that is being started again, or has a slow disk
GONE = (http.client.HTTPException, OSError)
SHARED_REPO = "load/shared"


class Unanswered(Exception):
    """The server went away before it answered."""


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=None)
def content(name):
    """Bytes that follow from a name."""
    generator = random.Random(name)
    return generator.randbytes(4096 * generator.choice((1, 1, 2, 5, 17, 60)))


def manifest_of(data):
    """A disk of one raw layer."""
    return json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.cairn.disk.v1",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"),
                   "size": 2},
        "layers": [{"mediaType": "application/vnd.cairn.layer.v1.raw", "digest": digest_of(data),
                    "size": len(data)}]}).encode()


class Client:
    def __init__(self, number, options):
        self.number, self.options = number, options
        self.rng = random.Random(f"{SEED}/load/{number}")
        self.repo = f"load/c{number}"
        self.data = [content(f"{SEED} {number} {i}") for i in range(NR_BLOBS)]
        self.blobs = [{False} for _ in range(NR_BLOBS)]  # may be there, may be not
        self.tags = {tag: {None} for tag in TAGS}  # the blobs whose manifest it may name
        self.connection = None
        self.requests = self.unanswered = 0

    # -- Requests -------------------------------------------------------------------------------

    def connect(self):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.options.port,
                                                             timeout=PATIENCE)
                self.connection.connect()
                self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return
            except OSError:
                if not self.options.outages or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and body; 503 is asked again, as it says."""
        deadline = time.monotonic() + PATIENCE
        while True:
            if not self.connection:
                self.connect()
            try:
                self.connection.request(method, path, body, headers or {})
                response = self.connection.getresponse()
                answer = response.status, response.headers, response.read()
            except GONE as error:
                self.connection.close()
                self.connection = None
                if not self.options.outages:
                    raise
                self.unanswered += 1
                raise Unanswered(f"{method} {path}") from error
            self.requests += 1
            if answer[0] not in (429, 503) or time.monotonic() > deadline:
                return answer
            time.sleep(0.05)

    def look(self, path, headers=None):
        """GET, until there is an answer: asking twice changes nothing."""
        deadline = time.monotonic() + 2 * PATIENCE
        while True:
            try:
                return self.ask("GET", path, headers=headers)
            except Unanswered:
                if time.monotonic() > deadline:
                    raise

    def must(self, answer, what, *statuses):
        status, _, body = answer
        if status not in statuses:
            raise AssertionError(f"client {self.number}: {what}: status {status}, "
                                 f"expected {statuses}: {body[:500]}")

    # -- Blobs ----------------------------------------------------------------------------------

    def start_upload(self):
        answer = self.ask("POST", f"/v2/{self.repo}/blobs/uploads/")
        self.must(answer, "an upload's start", 202)
        return answer[1]["Location"]

    def push_at_once(self, data):
        return self.ask("POST", f"/v2/{self.repo}/blobs/uploads/?digest={digest_of(data)}", data)

    def push_with_put(self, data):
        location = self.start_upload()
        return self.ask("PUT", with_digest(location, data), data)

    def push_in_chunks(self, data):
        location = self.start_upload()
        cut = self.rng.randrange(len(data))
        for part in (data[:cut], data[cut:]):
            if part:
                answer = self.ask("PATCH", location, part)
                self.must(answer, "a chunk", 202)
                location = answer[1]["Location"]
        return self.ask("PUT", with_digest(location, data), b"")

    def push(self, i):
        how = self.rng.choice((self.push_at_once, self.push_with_put, self.push_in_chunks))
        self.blobs[i] = self.blobs[i] | {True}
        try:
            self.must(how(self.data[i]), f"{how.__name__} of blob {i}", 201)
        except Unanswered:
            return
        self.blobs[i] = {True}

    def ensure(self, data):
        """For what is shared by all manifests: pushed until it is there."""
        while True:
            try:
                self.must(self.push_at_once(data), "push", 201)
                return
            except Unanswered:
                pass

    def mount(self, _):
        digest, size = self.options.shared
        try:
            answer = self.ask("POST", f"/v2/{self.repo}/blobs/uploads/?mount={digest}"
                                      f"&from={SHARED_REPO}")
        except Unanswered:
            return
        self.must(answer, "a mount", 201)
        answer = self.look(f"/v2/{self.repo}/blobs/{digest}", {"Range": "bytes=0-99"})
        self.must(answer, "a mounted blob", 206)
        assert int(answer[1]["Content-Range"].rpartition("/")[2]) == size

    def named(self, i):
        """May any tag name the manifest of blob i?"""
        return any(i in values for values in self.tags.values())

    def delete_blob(self, i):
        if self.named(i):
            return
        may = self.blobs[i]
        self.blobs[i] = may | {False}
        try:
            answer = self.ask("DELETE", f"/v2/{self.repo}/blobs/{digest_of(self.data[i])}")
        except Unanswered:
            return
        self.must(answer, f"deleting blob {i}", *((202,) if True in may else ()),
                  *((404,) if False in may else ()))
        self.blobs[i] = {False}

    def read_blob(self, i):
        data = self.data[i]
        first, last = sorted(self.rng.randrange(len(data)) for _ in range(2))
        headers = self.rng.choice(({}, {"Range": f"bytes={first}-{last}"}))
        answer = self.look(f"/v2/{self.repo}/blobs/{digest_of(data)}", headers)
        self.must(answer, f"blob {i}, which may be there: {self.blobs[i]}",
                  *((206 if headers else 200,) if True in self.blobs[i] else ()),
                  *((404,) if False in self.blobs[i] else ()))
        self.blobs[i] = {answer[0] != 404}
        if answer[0] != 404:
            assert answer[2] == (data[first:last + 1] if headers else data), f"blob {i}: wrong bytes"

    # -- Tags -----------------------------------------------------------------------------------

    def tag(self, i):
        tag = self.rng.choice(TAGS)
        if self.blobs[i] != {True}:
            return
        self.tags[tag] = self.tags[tag] | {i}
        try:
            answer = self.ask("PUT", f"/v2/{self.repo}/manifests/{tag}", manifest_of(self.data[i]),
                              {"Content-Type": MANIFEST})
        except Unanswered:
            return
        self.must(answer, f"tag {tag}", 201)
        self.tags[tag] = {i}

    def delete_tag(self, _):
        tag = self.rng.choice(TAGS)
        may = self.tags[tag]
        self.tags[tag] = may | {None}
        try:
            answer = self.ask("DELETE", f"/v2/{self.repo}/manifests/{tag}")
        except Unanswered:
            return
        self.must(answer, f"deleting tag {tag}", *((202,) if may - {None} else ()),
                  *((404,) if None in may else ()))
        self.tags[tag] = {None}

    def read_tag(self, _, tag=None):
        tag = tag or self.rng.choice(TAGS)
        answer = self.look(f"/v2/{self.repo}/manifests/{tag}")
        found = {i for i in self.tags[tag] if answer[0] == (404 if i is None else 200)
                 and (i is None or answer[2] == manifest_of(self.data[i]))}
        if not found:
            raise AssertionError(f"client {self.number}: tag {tag} may name {self.tags[tag]}; "
                                 f"status {answer[0]}: {answer[2][:500]}")
        self.tags[tag] = found

    def read_disk(self, _):
        tag = self.rng.choice(TAGS)
        if len(self.tags[tag]) != 1 or None in self.tags[tag]:
            return
        data = self.data[next(iter(self.tags[tag]))]
        first, last = sorted(self.rng.randrange(len(data)) for _ in range(2))
        answer = self.look(f"/v1/disks/{self.repo}:{tag}/data", {"Range": f"bytes={first}-{last}"})
        self.must(answer, f"disk {tag}", 206)
        assert answer[2] == data[first:last + 1], f"disk {tag}: wrong bytes"

    def list_tags(self, _):
        answer = self.look(f"/v2/{self.repo}/tags/list")
        self.must(answer, "tags", 200)
        listed = set(json.loads(answer[2])["tags"] or ())
        for tag, may in self.tags.items():
            assert tag in listed or None in may, (tag, may, listed)
            assert tag not in listed or may != {None}, (tag, may, listed)

    def read_shared(self, _):
        """64 KiB of a disk that all read; its sectors hold their numbers."""
        digest, size = self.options.shared
        first = self.rng.randrange(size // 65536) * 65536
        path = self.rng.choice((f"/v1/disks/{SHARED_REPO}:v1/data",
                                f"/v2/{SHARED_REPO}/blobs/{digest}"))
        answer = self.look(path, {"Range": f"bytes={first}-{first + 65535}"})
        self.must(answer, path, 206)
        assert answer[2] == shared_bytes(first, 65536), f"{path} at {first}: wrong bytes"

    # -- All of it ------------------------------------------------------------------------------

    def step(self):
        calls = ((self.push, 20), (self.delete_blob, 8), (self.read_blob, 20), (self.tag, 12),
                 (self.delete_tag, 4), (self.read_tag, 12), (self.read_disk, 12),
                 (self.list_tags, 5), *(((self.read_shared, 20), (self.mount, 2))
                                        if self.options.shared else ()))
        call, = self.rng.choices([c for c, _ in calls], [weight for _, weight in calls])
        try:
            call(self.rng.randrange(NR_BLOBS))
        except Unanswered:
            pass

    def verify(self):
        for i in range(NR_BLOBS):
            self.read_blob(i)
        for tag in TAGS:
            self.read_tag(0, tag)
        self.list_tags(0)

    def run(self):
        self.ensure(b"{}")
        while not self.options.until.exists():
            for _ in range(10):
                self.step()
        self.verify()
        self.connection.close()


def with_digest(location, data):
    return f"{location}{'&' if '?' in location else '?'}digest={digest_of(data)}"


def shared_bytes(first, length):
    """Of the shared disk: each sector is its number, over and over."""
    return b"".join(sector.to_bytes(8, "big") * 64
                    for sector in range(first // 512, (first + length) // 512))


def parse_shared(text):
    digest, _, size = text.rpartition(":")
    return digest, int(size)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--until", type=pathlib.Path, required=True)
    parser.add_argument("--outages", action="store_true")
    parser.add_argument("--shared", type=parse_shared)
    options = parser.parse_args()
    clients = [Client(options.first + i, options) for i in range(options.clients)]
    failures = []

    def run(client):
        try:
            client.run()
        except BaseException as error:  # any is the test's
            failures.append(f"client {client.number}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\n".join(failures[:10]), file=sys.stderr)
    print(json.dumps({"requests": sum(client.requests for client in clients),
                      "unanswered": sum(client.unanswered for client in clients)}))
    sys.stdout.flush()
    os._exit(1 if failures else 0)


if __name__ == "__main__":
    main()
