#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Who may do what: every route with every kind of token and peer, blobs of other repositories, the
files read again under load, real registry clients, and disks attached over TLS while tokens and
certificates are replaced."""

import hashlib
import http.client
import json
import os
import re
import signal
import ssl
import threading
import warnings

import qemu
from cairntest import (CAIRN, CAIRND, MIB, Attachment, Case, Http, first_difference,
                       location_path, main, run, seeded, wait_for)
from nbdclient import NbdClient
from pki import Authority

OLD = 1000000000  # seconds: older than any grace
REFUSED_PEER = (ssl.SSLError, ConnectionError, http.client.BadStatusLine)


def digest_of(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def bearer(token):
    return {"Authorization": f"Bearer {token}"} if token else {}


class Tokens:
    """A token file, and the tokens whose hashes are in it."""

    def __init__(self, path):
        self.path, self.lines, self.secrets = path, {}, []
        self.write()

    def add(self, name, *grants):
        """A token made by `cairn token`."""
        token, line = run(CAIRN, "token", name, *grants).stdout.decode().splitlines()
        self.lines[token] = line
        self.secrets.append(token)
        self.write()
        return token

    def remove(self, token):
        del self.lines[token]
        self.write()

    def write(self):
        """Replaced as a whole, as an operator should."""
        new = self.path.with_suffix(".new")
        new.touch(0o640)
        new.write_text("".join(f"{line}\n" for line in self.lines.values()))
        new.rename(self.path)


class AccessCase(Case):
    def setUp(self):
        super().setUp()
        self.tokens = Tokens(self.tmp / "tokens")
        self.everything = self.tokens.add("everything", "pull,push,delete,admin")

    def serve(self, *arguments, name="server", **options):
        return self.cairnd(name, arguments=["--token-file", self.tokens.path, *arguments],
                           **options)

    def tls(self, authority, *arguments, pair=None, client=None, name="server", context=None):
        cert, key = pair or authority.sign("server")
        return self.serve("--tls-cert", cert, "--tls-key", key, *arguments, name=name,
                          context=context or authority.context(client))

    def request(self, server, method, path, token=None, body=None, **headers):
        return server.http.request(method, path, body, {**bearer(token), **headers})

    def upload(self, server, repo, data):
        started = self.request(server, "POST", f"/v2/{repo}/blobs/uploads/", self.everything)
        path = location_path(started)
        path += f"{'&' if '?' in path else '?'}digest={digest_of(data)}"
        done = self.request(server, "PUT", path, self.everything, data)
        self.assertEqual(done.status, 201, done.body)
        return digest_of(data)

    def disk(self, name, size=2 * MIB):
        """A raw image with random content; it has the seed's bytes."""
        image = self.tmp / f"{name}.raw"
        image.write_bytes(seeded(f"{self.id()}/{name}").randbytes(size))
        return image

    def push(self, server, image, ref, **env):
        return server.cairn("push", image, ref, env={"CAIRN_TOKEN": self.everything, **env})

    def reload(self, server, result="ok"):
        """SIGHUP, and wait until the token file was read."""
        def count():
            text = self.request(server, "GET", "/metrics", self.everything).body.decode()
            found = re.search(rf'^cairn_auth_reloads_total{{result="{result}"}} (\d+)$', text, re.M)
            return int(found[1])
        before = count()
        server.popen.send_signal(signal.SIGHUP)
        wait_for(lambda: count() > before, "the token file to be read again")


class Matrix(AccessCase):
    """Every route of the server's own table, with whoever may ask."""

    def routes(self):
        lines = run(CAIRND, "--routes").stdout.decode().splitlines()
        self.assertGreater(len(lines), 40)
        return [tuple(line.split()) for line in lines]

    def concrete(self, path):
        name = self.blob if "/blobs/<name>" in path else "v1"
        return path.replace("<repo>", "team/vm").replace("<ref>", "team/vm:v1") \
            .replace("<name>", name)

    def populate(self, server):
        image = self.disk("vm")
        self.push(server, image, "team/vm:v1")
        self.blob = digest_of(image.read_bytes())

    # Whether who has exactly this grant, or all of them elsewhere, gets through.
    MAY = {
        "open": {"none", "wrong", "malformed", "pull", "push", "delete", "admin", "other"},
        "metrics": {"admin"},
        "token": {"pull", "push", "delete", "admin", "other"},
        "lists": {"pull", "other"},
        "pull": {"pull"},
        "push": {"push"},
        "delete": {"delete"},
        "admin": {"admin"},
    }

    def test_every_route_with_every_token(self):
        who = {name: self.tokens.add(name, name if name == "admin" else f"{name}:team/*")
               for name in ("pull", "push", "delete", "admin")}
        who["other"] = self.tokens.add("other", "pull,push,delete:other/*")
        server = self.serve()
        self.populate(server)
        headers = {name: bearer(token) for name, token in who.items()}
        headers.update(none={}, wrong=bearer("cairn_" + "0" * 64),
                       malformed={"Authorization": "Negotiate abc"})
        for method, path, need in self.routes():
            for name, authorization in headers.items():
                answer = server.http.request(method, self.concrete(path), None, authorization)
                what = f"{method} {path} ({need}) as {name}: {answer.status} {answer.body[:200]}"
                if name in self.MAY[need]:
                    self.assertNotIn(answer.status, (401, 403), what)
                elif name in ("none", "wrong", "malformed"):
                    # 404 and 405: the server has no such route, whoever asks
                    self.assertIn(answer.status, (401, 404, 405), what)
                else:
                    self.assertIn(answer.status, (403, 404, 405), what)
                if answer.status == 401:
                    self.assertIn("Basic", answer.headers["WWW-Authenticate"], what)

    def test_what_is_refused_is_not_done(self):
        """The refusals above, by what they would have changed."""
        reader = self.tokens.add("reader", "pull")
        server = self.serve()
        self.populate(server)
        before = server.files()
        for method, path, need in self.routes():
            if need in ("push", "delete", "admin"):
                self.request(server, method, self.concrete(path), reader)
        self.assertEqual(server.files(), before)
        data = self.request(server, "GET", "/v1/disks/team/vm:v1/data", reader)
        self.assertEqual(digest_of(data.body), self.blob)

    def test_every_route_with_every_peer(self):
        authority, foreign = Authority(self.tmp), Authority(self.tmp, "foreign")
        good = authority.sign("client")
        server = self.tls(authority, "--tls-client-ca", authority.cert, client=good)
        peers = {
            "without": authority.context(),
            "expired": authority.context(authority.sign("expired", days=-1)),
            "foreign": authority.context(foreign.sign("client")),
        }
        for method, path, need in self.routes():
            path = re.sub("<.*?>", "x", path)
            for name, context in peers.items():
                with self.assertRaises(REFUSED_PEER, msg=f"{method} {path} ({need}) {name}"):
                    Http(server.port, context=context).request(
                        method, path, None, bearer(self.everything))
        self.assertEqual(self.request(server, "GET", "/v2/", self.everything).status, 200)
        text = self.request(server, "GET", "/metrics", self.everything).body.decode()
        refused = re.search(r"^cairn_tls_client_certificates_refused_total (\d+)$", text, re.M)
        self.assertEqual(int(refused[1]), 2 * len(self.routes()))  # the third shows none


class Repositories(AccessCase):
    """What tells of repositories that are not the caller's."""

    def setUp(self):
        super().setUp()
        self.team = self.tokens.add("team", "pull,push:team/*")
        self.server = self.serve("--metrics-access", "open")

    def figures(self):
        """How often each call of the store was made, and how much was read and written."""
        return {name: value for name, value in self.server.metrics().items()
                if re.match(r"cairn_store_(call_seconds_count|\w+_total)", name)}

    def work_of(self, method, path, **headers):
        """The answer, without what names it, and what each time it takes of the store at least:
        what goes on in the background comes and goes, and asking for the figures takes some, too."""
        def request():
            return self.request(self.server, method, path, self.team, **headers)

        def least(call):
            deltas = []
            for _ in range(5):
                before = self.figures()
                call()
                after = self.figures()
                deltas.append({name: after[name] - before.get(name, 0) for name in after})
            return {name: min(delta.get(name, 0) for delta in deltas) for name in deltas[0]}
        answer = request()
        text = re.sub(rb'sha256:[0-9a-f]{64}|"requestId":"[^"]*"', b"x", answer.body)
        idle, busy = least(lambda: None), least(request)
        work = {name: busy[name] - idle.get(name, 0) for name in busy}
        return (answer.status, sorted(answer.headers.keys()), text,
                {name: number for name, number in work.items() if number > 0})

    def test_a_foreign_blob_is_as_one_that_does_not_exist(self):
        rng = seeded(self.id())
        self.upload(self.server, "team/vm", rng.randbytes(1000))
        for method in ("GET", "HEAD", "DELETE"):
            for headers in ({}, {"Range": "bytes=0-9"}):
                foreign = self.upload(self.server, "other/vm", rng.randbytes(1000))
                self.assertEqual(self.request(self.server, "GET", f"/v2/other/vm/blobs/{foreign}",
                                              self.everything).status, 200)
                nothing = digest_of(rng.randbytes(1000))
                theirs, none = (self.work_of(method, f"/v2/team/vm/blobs/{digest}", **headers)
                                for digest in (foreign, nothing))
                self.assertEqual(theirs, none)
                self.assertEqual(theirs[0], 404 if method != "DELETE" else 403)
                self.assertEqual(bool(theirs[3]), method != "DELETE")  # it is seen where there is any

    def test_a_foreign_blob_does_not_get_younger(self):
        """Who asks whether a blob is there keeps it from being collected, if it may be seen."""
        digest = self.upload(self.server, "other/vm", seeded(self.id()).randbytes(1000))
        hexa = digest.removeprefix("sha256:")
        path = self.server.store / "blobs" / "sha256" / hexa[:2] / hexa
        os.utime(path, (OLD, OLD))
        for repo, token, status in (("team/vm", self.team, 404), ("other/vm", self.everything, 200)):
            self.assertEqual(path.stat().st_mtime, OLD)
            asked = self.request(self.server, "HEAD", f"/v2/{repo}/blobs/{digest}", token)
            self.assertEqual(asked.status, status)
        self.assertGreater(path.stat().st_mtime, OLD)

    def test_a_foreign_repository_is_as_one_that_does_not_exist(self):
        image = self.disk("vm")
        self.push(self.server, image, "other/vm:v1")
        for path in ("/v2/{}/manifests/v1", "/v2/{}/tags/list", "/v1/disks/{}:v1/data",
                     "/v1/disks/{}:v1", "/v1/repositories/{}",
                     "/v2/{}/blobs/" + digest_of(image.read_bytes())):
            theirs, none = (self.work_of("GET", path.format(repo))
                            for repo in ("other/vm", "other/no"))
            self.assertEqual(theirs[:2], none[:2])
            self.assertEqual(theirs[2].replace(b"other/vm", b"other/no"), none[2])
            self.assertEqual((theirs[0], theirs[3], none[3]), (403, {}, {}))

    def test_a_foreign_blob_is_not_mounted(self):
        rng = seeded(self.id())
        foreign = self.upload(self.server, "other/vm", rng.randbytes(1000))
        nothing = digest_of(rng.randbytes(1000))
        answers = []
        for digest, source in ((foreign, "other/vm"), (nothing, "other/vm"), (nothing, "other/no")):
            status, headers, _, work = self.work_of(
                "POST", f"/v2/team/vm/blobs/uploads/?mount={digest}&from={source}")
            answers.append((status, headers, work))
        self.assertEqual(answers[0], answers[1])
        self.assertEqual(answers[1], answers[2])
        self.assertEqual(answers[0][0], 202)  # an upload was opened instead
        self.assertEqual(self.request(self.server, "GET", f"/v2/team/vm/blobs/{foreign}",
                                      self.team).status, 404)

    def test_an_own_blob_is_mounted(self):
        digest = self.upload(self.server, "team/vm", b"mine")
        answer = self.request(self.server, "POST",
                              f"/v2/team/b/blobs/uploads/?mount={digest}&from=team/vm", self.team)
        self.assertEqual(answer.status, 201)

    def test_a_foreign_blob_cannot_be_published(self):
        """A manifest that names a layer which only another repository has."""
        image = self.disk("vm")
        self.push(self.server, image, "other/vm:v1")
        manifest = self.request(self.server, "GET", "/v2/other/vm/manifests/v1", self.everything)
        answer = self.request(self.server, "PUT", "/v2/team/vm/manifests/v1", self.team,
                              manifest.body, **{"Content-Type": manifest.headers["Content-Type"]})
        self.assertEqual(answer.status, 404, answer.body)

    def test_changes_need_both_disks(self):
        image = self.disk("vm")
        for ref in ("team/vm:v1", "other/vm:v1"):
            self.push(self.server, image, ref)
        def status(since):
            return self.request(self.server, "GET", f"/v1/disks/team/vm:v1/changes?since={since}",
                                self.team).status
        self.assertEqual(status("team/vm:v1"), 200)
        self.assertEqual(status("other/vm:v1"), 403)
        self.assertEqual(status("other/no:v1"), 403)

    def test_the_catalogue_shows_what_is_the_callers(self):
        for repo in ("other/vm", "team/a", "team/b/c", "teams"):
            self.upload(self.server, repo, b"x")
        def catalogue(token, query=""):
            return self.request(self.server, "GET", f"/v2/_catalog{query}", token)
        self.assertEqual(catalogue(self.team).json()["repositories"], ["team/a", "team/b/c"])
        self.assertEqual(len(catalogue(self.everything).json()["repositories"]), 4)
        page = catalogue(self.team, "?n=1")
        self.assertEqual(page.json()["repositories"], ["team/a"])
        self.assertIn("last=team/a", page.headers["Link"])

    def test_the_user_is_logged_and_no_token_is(self):
        self.request(self.server, "GET", "/v2/team/vm/tags/list", self.team)
        self.request(self.server, "GET", "/v2/", "a-wrong-token")
        self.request(self.server, "GET", "/v2/", None, Authorization="Basic nonsense")
        wait_for(lambda: self.server.text().count("event=request") >= 3, "the requests' lines")
        self.assertIn("user=team", self.server.text())
        for secret in (*self.tokens.secrets, "a-wrong-token", "nonsense"):
            self.assertNotIn(secret, self.server.text())


class Registry(AccessCase):
    """Real clients, over TLS."""

    def setUp(self):
        super().setUp()
        self.team = self.tokens.add("team", "pull,push:team/*")
        self.authority = Authority(self.tmp)
        self.server = self.tls(self.authority, "--anonymous-pull", "public/*,golden")
        self.host = f"127.0.0.1:{self.server.port}"
        self.policy = self.tmp / "policy.json"
        self.policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.certs = self.folder("certs")
        (self.certs / "ca.crt").write_bytes(self.authority.cert.read_bytes())
        self.image = self.disk("vm")
        for ref in ("team/vm:v1", "public/vm:v1"):
            self.push(self.server, self.image, ref, CAIRN_CACERT=str(self.authority.cert))

    def skopeo(self, *arguments, code=0):
        return run("skopeo", "--policy", self.policy, *arguments, code=code,
                   env={"HOME": str(self.tmp), "XDG_RUNTIME_DIR": str(self.tmp)})

    def login(self, token, code=0):
        return self.skopeo("login", "--cert-dir", self.certs, "-u", "anybody", "-p", token,
                           self.host, code=code)

    def test_skopeo_logs_in_and_copies(self):
        self.login(self.team)
        self.skopeo("copy", "--preserve-digests", "--src-cert-dir", self.certs,
                    f"docker://{self.host}/team/vm:v1", f"oci:{self.tmp}/oci:v1")
        self.skopeo("copy", "--preserve-digests", "--dest-cert-dir", self.certs,
                    f"oci:{self.tmp}/oci:v1", f"docker://{self.host}/team/copy:v1")
        inspected = self.skopeo("inspect", "--raw", "--cert-dir", self.certs,
                                f"docker://{self.host}/team/copy:v1")
        self.assertEqual(len(inspected.json()["layers"]), 1)
        self.skopeo("logout", self.host)
        self.skopeo("inspect", "--raw", "--cert-dir", self.certs,
                    f"docker://{self.host}/team/copy:v1", code=1)

    def test_skopeo_is_told_that_a_login_is_wrong(self):
        self.assertIn(b"invalid username/password", self.login("wrong", code=1).stderr)

    def test_skopeo_may_not_push_elsewhere(self):
        self.login(self.team)
        self.skopeo("copy", "--src-cert-dir", self.certs, f"docker://{self.host}/team/vm:v1",
                    f"oci:{self.tmp}/oci:v1")
        result = self.skopeo("copy", "--dest-cert-dir", self.certs, f"oci:{self.tmp}/oci:v1",
                             f"docker://{self.host}/public/vm:v2", code=1)
        self.assertIn(b"denied", result.stderr)

    def test_anybody_reads_what_is_public(self):
        manifest = self.skopeo("inspect", "--raw", "--cert-dir", self.certs,
                               f"docker://{self.host}/public/vm:v1").json()
        self.assertEqual(manifest["layers"][0]["digest"], digest_of(self.image.read_bytes()))
        url = f"{self.server.url}/v1/disks/public/vm:v1/data"
        got = run("curl", "-sS", "--fail", "--cacert", self.authority.cert, url).stdout
        self.assertIsNone(first_difference(got, self.image.read_bytes()))
        copy = self.tmp / "copy.raw"
        self.server.cairn("pull", "--raw", "public/vm:v1", copy,
                          env={"CAIRN_CACERT": str(self.authority.cert)})
        self.assertIsNone(first_difference(copy.read_bytes(), self.image.read_bytes()))

    def test_nobody_reads_or_writes_more(self):
        for method, path, status in (
                ("GET", "/v2/", 401), ("GET", "/v2/public/vm/tags/list", 200),
                ("GET", "/v2/team/vm/tags/list", 401), ("GET", "/v2/goldens/tags/list", 401),
                ("GET", "/v2/golden/tags/list", 404), ("GET", "/metrics", 401),
                ("POST", "/v2/public/vm/blobs/uploads/", 401),
                ("DELETE", "/v2/public/vm/manifests/v1", 401)):
            self.assertEqual(self.request(self.server, method, path).status, status, path)
        catalogue = self.request(self.server, "GET", "/v2/_catalog").json()["repositories"]
        self.assertEqual(catalogue, ["public/vm"])

    def test_a_token_is_no_hindrance(self):
        """What anybody may read, one with a token may, too."""
        for path in ("/v2/public/vm/tags/list", "/v2/team/vm/tags/list"):
            self.assertEqual(self.request(self.server, "GET", path, self.team).status, 200)
        catalogue = self.request(self.server, "GET", "/v2/_catalog", self.team).json()
        self.assertEqual(catalogue["repositories"], ["public/vm", "team/vm"])

    def test_qemu_reads_http_without_a_token(self):
        plain = self.serve("--anonymous-pull", "public/*", name="plain")
        self.push(plain, self.image, "public/vm:v1")
        url = f"{plain.url}/v1/disks/public/vm:v1/data"
        qemu.img("convert", "-m", "1", "-f", "raw", "-O", "raw", url, self.tmp / "http.raw")
        self.assertIsNone(first_difference((self.tmp / "http.raw").read_bytes(),
                                           self.image.read_bytes()))

    def test_large_bodies_and_ranges(self):
        """TLS has no sendfile: every way a reply is made."""
        image = self.disk("large", 20 * MIB)
        data = image.read_bytes()
        ca = {"CAIRN_CACERT": str(self.authority.cert)}
        self.push(self.server, image, "team/large:v1", **ca)
        for path in (f"/v2/team/large/blobs/{digest_of(data)}", "/v1/disks/team/large:v1/data"):
            for first, last in ((0, len(data) - 1), (0, 0), (5, 40000), (100000, 9 * MIB),
                                (len(data) - 70000, len(data) - 1)):
                answer = self.request(self.server, "GET", path, self.team,
                                      Range=f"bytes={first}-{last}")
                self.assertEqual(answer.status, 206)
                self.assertIsNone(first_difference(answer.body, data[first:last + 1]))
        copy = self.tmp / "large.qcow2"
        self.server.cairn("pull", "team/large:v1", copy, env={"CAIRN_TOKEN": self.team, **ca})
        self.assertIsNone(first_difference(qemu.convert(copy, self.tmp / "copy.raw"), data))


class Reload(AccessCase):
    def test_tokens_change_under_load(self):
        steady = self.tokens.add("steady", "pull")
        server = self.serve()
        digest = self.upload(server, "team/vm", b"x" * 1000)
        done, failures, served = threading.Event(), [], [0] * 3

        def load(i):
            while not done.is_set():
                answer = self.request(server, "GET", f"/v2/team/vm/blobs/{digest}", steady)
                served[i] += 1
                if answer.status != 200:
                    failures.append(answer.status)
        threads = [threading.Thread(target=load, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        try:
            for i in range(8):
                token = self.tokens.add(f"guest{i}", "pull")
                self.assertEqual(self.request(server, "GET", "/v2/", token).status, 401)
                self.reload(server)
                self.assertEqual(self.request(server, "GET", "/v2/", token).status, 200)
                self.tokens.remove(token)
                self.reload(server)
                self.assertEqual(self.request(server, "GET", "/v2/", token).status, 401)
            wait_for(lambda: min(served) > 10 or failures, "some load")
        finally:
            done.set()
            for thread in threads:
                thread.join()
        self.assertEqual(failures, [])

    def test_a_bad_file_changes_nothing(self):
        server = self.serve()
        bad = self.tmp / "bad"
        for text, mode, message in (("ci sha256:12 pull\n", 0o600, "tokens:1: token ci: expected"),
                                    ("", 0o666, "others than its owner may write to it")):
            bad.touch()
            bad.chmod(mode)
            bad.write_text(text)
            bad.rename(self.tokens.path)
            self.reload(server, "failed")
            wait_for(lambda: message in server.text(), message)  # it is counted first
            self.assertEqual(self.request(server, "GET", "/v2/", self.everything).status, 200)
        self.tokens.path.unlink()
        self.reload(server, "failed")
        self.assertEqual(self.request(server, "GET", "/v2/", self.everything).status, 200)

    def test_certificates_change_under_connections(self):
        authority = Authority(self.tmp)
        cert, key = authority.sign("server")
        other = authority.sign("renewed")
        server = self.tls(authority, pair=(cert, key))
        kept = server.http.connect()
        kept.request("GET", "/healthz")
        kept.getresponse().read()
        before = kept.sock.getpeercert()["serialNumber"]
        cert.write_bytes(other[0].read_bytes())
        self.reload(server)  # the certificate without its key is refused, before the tokens are read
        self.assertEqual(self.serial(server), before)
        self.assertIn("event=tls-kept", server.text())
        key.write_bytes(other[1].read_bytes())
        self.reload(server)
        self.assertNotEqual(self.serial(server), before)
        kept.request("GET", "/healthz")
        self.assertEqual(kept.getresponse().read(), b"ok\n")
        kept.close()

    def serial(self, server):
        connection = server.http.connect()
        connection.connect()
        try:
            return connection.sock.getpeercert()["serialNumber"]
        finally:
            connection.close()


class Start(AccessCase):
    """What a server does not start with."""

    def refused(self, message, *arguments, code=2):
        result = run(CAIRND, "--listen", "127.0.0.1:0", "--store", f"fs:{self.tmp}/store",
                     *arguments, code=code, timeout=20)
        self.assertIn(message, (result.stdout + result.stderr).decode())

    def test_bad_files_are_named(self):
        authority = Authority(self.tmp)
        cert, key = authority.sign("server")
        _, other_key = authority.sign("other")
        text = self.tmp / "text"
        text.write_text("nothing of the kind")
        self.refused(f"tls-cert {self.tmp}/none", "--tls-cert", self.tmp / "none", "--tls-key", key,
                     code=1)
        self.refused(f"tls-cert {cert} with tls-key {other_key}", "--tls-cert", cert, "--tls-key",
                     other_key)
        self.refused(f"tls-cert {text}", "--tls-cert", text, "--tls-key", key)
        self.refused(f"tls-client-ca {text}", "--tls-cert", cert, "--tls-key", key,
                     "--tls-client-ca", text)
        self.refused(f"tls-key {self.tmp} is not a regular file", "--tls-cert", cert, "--tls-key",
                     self.tmp)
        self.refused("give both or none", "--tls-cert", cert)
        self.refused("tls-client-ca needs", "--tls-client-ca", cert)
        self.refused(f"{text}:1: ", "--token-file", text)
        self.refused(f"token file {self.tmp}/none", "--token-file", self.tmp / "none", code=1)
        self.refused("anonymous-pull needs token-file", "--anonymous-pull", "a")
        self.refused("is not a pattern of repository names", "--token-file", self.tokens.path,
                     "--anonymous-pull", "a,A")
        self.refused("metrics-access", "--metrics-access", "nobody")

    def test_old_tls_and_plain_http_are_refused(self):
        authority = Authority(self.tmp)
        server = self.tls(authority)
        old = authority.context()
        old.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # which is why they are refused
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with self.assertRaises(REFUSED_PEER):
            Http(server.port, context=old).get("/healthz")
        with self.assertRaises(REFUSED_PEER):
            Http(server.port).get("/healthz")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = authority.context()
            context.minimum_version = context.maximum_version = version
            self.assertEqual(Http(server.port, context=context).get("/healthz").status, 200)

    def test_tokens_in_the_clear_are_warned_of(self):
        server = self.serve("--listen", "0.0.0.0:0")
        wait_for(lambda: "event=clear-tokens" in server.text(), "the warning")
        self.assertNotIn("event=clear-tokens", self.serve(name="local").text())


class Client(AccessCase):
    """What the cairn command says, and where it does not send a token."""

    def failure(self, server, *arguments, **env):
        result = server.cairn(*arguments, code=1, timeout=20, env=env)
        self.assertEqual(len(result.stderr.decode().splitlines()), 1, result.describe())
        return result.stderr.decode()

    def test_refusals_are_told_apart(self):
        team = self.tokens.add("team", "pull:team/*")
        server = self.serve()
        self.push(server, self.disk("vm"), "team/vm:v1")
        self.assertIn("a token is needed", self.failure(server, "info", "team/vm:v1"))
        self.assertIn("the token is not known",
                      self.failure(server, "info", "team/vm:v1", CAIRN_TOKEN="wrong"))
        self.assertIn("token team is not granted pull of repository other/vm",
                      self.failure(server, "info", "other/vm:v1", CAIRN_TOKEN=team))
        self.assertIn("token team is not granted delete of repository team/vm",
                      self.failure(server, "rm", "team/vm:v1", CAIRN_TOKEN=team))

    def test_a_token_comes_from_file_option_or_environment(self):
        server = self.serve()
        self.push(server, self.disk("vm"), "team/vm:v1")
        path = self.tmp / "mine"
        line = run(CAIRN, "token", "mine", "pull", "--out", path).stdout.decode()
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        self.assertNotIn(path.read_text().strip(), line)
        self.tokens.lines["mine"] = line.strip()
        self.tokens.write()
        self.reload(server)
        server.cairn("info", "team/vm:v1", "--token-file", path)
        server.cairn("info", "team/vm:v1", env={"CAIRN_TOKEN_FILE": str(path)})
        server.cairn("info", "team/vm:v1", "--token-file", path, env={"CAIRN_TOKEN": "wrong"})
        run(CAIRN, "token", "mine", "pull", "--out", path, code=1)

    def test_a_server_that_is_not_the_right_one(self):
        authority, foreign = Authority(self.tmp), Authority(self.tmp, "foreign")
        good, ca = {"CAIRN_TOKEN": self.everything}, str(authority.cert)
        server = self.tls(authority)
        server.cairn("ls", "--cacert", ca, env=good)
        self.assertIn("--cacert", self.failure(server, "ls", **good))
        self.assertIn("--cacert", self.failure(server, "ls", CAIRN_CACERT=str(foreign.cert), **good))
        blind = ssl.create_default_context()  # for the test itself, which must get through
        blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
        expired = self.tls(authority, pair=authority.sign("old", days=-1), name="old",
                           context=blind)
        self.assertIn("expired", self.failure(expired, "ls", CAIRN_CACERT=ca, **good))
        other = self.tls(authority, pair=authority.sign("o", hosts="DNS:other.example"), name="o",
                         context=blind)
        self.assertIn("127.0.0.1", self.failure(other, "ls", CAIRN_CACERT=ca, **good))

    def test_a_client_certificate_is_shown(self):
        authority = Authority(self.tmp)
        cert, key = authority.sign("client")
        server = self.tls(authority, "--tls-client-ca", authority.cert, client=(cert, key))
        env = {"CAIRN_TOKEN": self.everything, "CAIRN_CACERT": str(authority.cert)}
        server.cairn("ls", "--cert", cert, "--key", key, env=env)
        server.cairn("ls", env={**env, "CAIRN_CERT": str(cert), "CAIRN_KEY": str(key)})
        self.assertIn("--cert", self.failure(server, "ls", **env))
        purpose = authority.sign("only-a-server", purpose="serverAuth")
        self.failure(server, "ls", "--cert", purpose[0], "--key", purpose[1], **env)

    def test_a_token_does_not_leave_the_host_in_the_clear(self):
        env = {"CAIRN_TOKEN": self.everything, "CAIRN_SERVER": "http://192.0.2.1:7117"}
        result = run(CAIRN, "ls", code=2, env=env)
        self.assertIn("without TLS the token could be read", result.stderr.decode())
        self.assertNotIn(self.everything, result.stderr.decode())


class Attached(AccessCase):
    """A disk over TLS, while what it proves itself with is replaced."""

    def test_tokens_and_certificates_are_replaced_under_a_disk(self):
        authority = Authority(self.tmp)
        cert, key = authority.sign("server")
        client = authority.sign("client")
        server = self.tls(authority, "--tls-client-ca", authority.cert, pair=(cert, key),
                          client=client)
        image = self.disk("vm", 16 * MIB)
        data = image.read_bytes()
        env = dict(zip(("CAIRN_CACERT", "CAIRN_CERT", "CAIRN_KEY"),
                       map(str, (authority.cert, *client))))
        self.push(server, image, "team/vm:v1", **env)
        mine = self.tmp / "mine"
        token = self.tokens.add("host", "pull,push:team/*")
        mine.write_text(token)
        self.reload(server)
        disk = self.own(Attachment(server.url, self.tmp / "attach.log", "team/vm:v1", "--disk",
                                   self.tmp / "disk", "--token-file", mine, "--cacert",
                                   authority.cert, "--cert", client[0], "--key", client[1]))
        nbd = NbdClient(disk.socket)
        for turn in range(4):
            off = turn * 4 * MIB
            self.assertIsNone(first_difference(nbd.read(off, MIB), data[off:off + MIB]))
            renewed = authority.sign(f"server{turn}")
            cert.write_bytes(renewed[0].read_bytes())
            key.write_bytes(renewed[1].read_bytes())
            old, token = token, self.tokens.add("host", "pull,push:team/*")
            mine.write_text(token)
            self.tokens.remove(old)
            self.reload(server)
            self.assertEqual(self.request(server, "GET", "/v2/", old).status, 401)
            off += 2 * MIB
            self.assertIsNone(first_difference(nbd.read(off, MIB), data[off:off + MIB]))
        nbd.write(0, b"changed" * 512)
        nbd.flush()
        self.assert_told_nobody(disk)
        server.cairn("snapshot", self.tmp / "disk", "team/vm:v2", env=env)
        nbd.close()
        disk.stop()
        self.assertEqual(self.request(server, "GET", "/v1/disks/team/vm:v2/data", self.everything,
                                      Range="bytes=0-6").body, b"changed")

    def assert_told_nobody(self, disk):
        """No token in arguments, logs, or the disk folder."""
        texts = [open(f"/proc/{pid}/cmdline", "rb").read() for pid in (disk.pid, disk.nbdkit_pid)]
        texts.append(disk.text().encode())
        texts += [path.read_bytes() for path in (self.tmp / "disk").iterdir()
                  if path.is_file() and path.suffix != ".qcow2"]
        for secret in self.tokens.secrets:
            for text in texts:
                self.assertNotIn(secret.encode(), text)


if __name__ == "__main__":
    main()
