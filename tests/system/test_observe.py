#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What an operator sees: figures that add up, request IDs from end to end, readiness, the log's
level; and that alerts and dashboard ask for what there is."""

import hashlib
import http.client
import json
import re
import signal

import qemu
from cairntest import (CAIRN, Cairnd, Case, MIB, ROOT, location_path, main, run, seeded, wait_for,
                       with_query)
from haproxy import HaProxy
from rawhttp import ask, head

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "cairn.json"
BLOB = "/v2/<repo>/blobs/<digest>"
UPLOADS = "/v2/<repo>/blobs/uploads/"
UPLOAD = "/v2/<repo>/blobs/uploads/<id>"
MANIFEST = "/v2/<repo>/manifests/<ref>"
DATA = "/v1/disks/<ref>/data"


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def logged(server, **fields):
    """The lines of the log that have these fields."""
    wanted = [f" {name}={value} " for name, value in fields.items()]
    return [line for line in server.text().splitlines()
            if all(word in line + " " for word in wanted)]


class Observe(Case):
    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())

    def server(self, *arguments, **options):
        server = Cairnd(self.tmp, arguments=arguments, **options)
        self.processes.append(server)
        return server

    def disk(self, server, ref="vm:v1"):
        """A small disk, pushed; its path."""
        path = self.tmp / f"{self.rng.randrange(1 << 30)}.qcow2"
        qemu.img("create", "-q", "-f", "qcow2", path, "8M")
        qemu.io(path, f"write -q -P {self.rng.randrange(1, 256)} 0 1M")
        server.push(path, ref)
        return path

    # -- Figures ----------------------------------------------------------------------------------

    def assert_grows(self, server, before, what):
        """Each figure grows by exactly so much.  A request is counted when its reply has been sent,
        which its client may see first."""
        now = {}

        def there():
            now.update(server.metrics())
            return all(now.get(name, 0) - before.get(name, 0) >= by for name, by in what.items())
        wait_for(there, f"{what}")
        self.assertEqual({name: now.get(name, 0) - before.get(name, 0) for name in what}, what)

    def http(self, name, route, method, **labels):
        more = "".join(f',{key}="{value}"' for key, value in labels.items())
        return f'cairn_http_{name}{{route="{route}",method="{method}"{more}}}'

    def test_requests_add_up(self):
        server = self.server()
        size = self.rng.randrange(2 * MIB, 3 * MIB)
        data = self.rng.randbytes(size)
        digest = digest_of(data)
        self.assertEqual(server.http.upload("vm", data, digest).status, 201)
        wait_for(lambda: self.http("requests_total", UPLOAD, "PUT", status=201)
                 in server.metrics(), "the upload's figures")
        before = server.metrics()
        wholes, ranges, heads, missing = (self.rng.randrange(1, 20) for _ in range(4))
        length = self.rng.randrange(1, 2 * MIB)
        for _ in range(wholes):
            self.assertEqual(server.http.get(f"/v2/vm/blobs/{digest}").body, data)
        for _ in range(ranges):
            off = self.rng.randrange(size - length)
            answer = server.http.get(f"/v2/vm/blobs/{digest}",
                                     Range=f"bytes={off}-{off + length - 1}")
            self.assertEqual(answer.body, data[off:off + length])
        for _ in range(heads):
            server.http.request("HEAD", f"/v2/vm/blobs/{digest}")
        errors = [server.http.get(f"/v2/vm/blobs/{digest_of(b'none')}") for _ in range(missing)]
        self.assert_grows(server, before, {
            self.http("requests_total", BLOB, "GET", status=200): wholes,
            self.http("requests_total", BLOB, "GET", status=206): ranges,
            self.http("requests_total", BLOB, "HEAD", status=200): heads,
            self.http("requests_total", BLOB, "GET", status=404): missing,
            self.http("request_seconds_count", BLOB, "GET"): wholes + ranges + missing,
            self.http("request_seconds_bucket", BLOB, "GET", le="+Inf"): wholes + ranges + missing,
            self.http("sent_bytes_total", BLOB, "GET"):
                wholes * size + ranges * length + sum(len(e.body) for e in errors),
            self.http("sent_bytes_total", BLOB, "HEAD"): 0,
            self.http("received_bytes_total", BLOB, "GET"): 0,
        })

    def test_bodies_add_up(self):
        server = self.server()
        before = server.metrics()
        data = self.rng.randbytes(self.rng.randrange(1, 3 * MIB))
        server.http.upload("vm", data, digest_of(data))
        started = server.http.request("POST", "/v2/vm/blobs/uploads/")
        wrong = with_query(location_path(started), digest=digest_of(b"other"))
        self.assertEqual(server.http.request("PUT", wrong, data).status, 400)
        started = server.http.request("POST", "/v2/vm/blobs/uploads/")
        chunk = self.rng.randbytes(self.rng.randrange(1, MIB))
        self.assertEqual(server.http.request("PATCH", location_path(started), chunk).status, 202)
        self.assert_grows(server, before, {
            self.http("requests_total", UPLOADS, "POST", status=202): 3,
            self.http("requests_total", UPLOAD, "PUT", status=201): 1,
            self.http("requests_total", UPLOAD, "PUT", status=400): 1,
            self.http("requests_total", UPLOAD, "PATCH", status=202): 1,
            self.http("received_bytes_total", UPLOAD, "PUT"): 2 * len(data),
            self.http("received_bytes_total", UPLOAD, "PATCH"): len(chunk),
            "cairn_uploads_begun_total": 3,
            "cairn_uploads_finished_total": 1,
            "cairn_uploads_aborted_total": 1,
            "cairn_uploads_received_bytes_total": 2 * len(data) + len(chunk),
            "cairn_uploads_open": 1,
            "cairn_uploads_open_bytes": len(chunk),
        })
        self.assertEqual(server.http.request("DELETE", location_path(started)).status, 204)
        self.assert_grows(server, before, {"cairn_uploads_aborted_total": 2, "cairn_uploads_open": 0,
                                           "cairn_uploads_open_bytes": 0})

    def test_pushes_add_up(self):
        server = self.server()
        before = server.metrics()
        self.disk(server, "vm:v1")
        self.disk(server, "vm:v2")
        bad = server.http.request("PUT", "/v2/vm/manifests/bad",
                                  server.http.get("/v2/vm/manifests/v1").body.replace(b"layer.v1.qcow2",
                                                                                      b"layer.v1.raw  "),
                                  {"Content-Type": "application/vnd.oci.image.manifest.v1+json"})
        self.assertGreaterEqual(bad.status, 400)
        self.assert_grows(server, before, {
            self.http("requests_total", MANIFEST, "PUT", status=201): 2,
            self.http("requests_total", MANIFEST, "PUT", status=bad.status): 1,
            "cairn_manifests_published_total": 2,
            "cairn_publish_seconds_count": 2,
            "cairn_index_builds_total": 2,
        })

    def test_labels_are_patterns_whatever_is_asked_for(self):
        server = self.server()
        for _ in range(50):
            word = "".join(self.rng.choices("abcdefghij/%2._-", k=self.rng.randrange(1, 40)))
            server.http.get(f"/{self.rng.choice(['', 'v1/', 'v2/', 'v1/disks/'])}{word}")
        server.http.request("BREW", "/")
        wait_for(lambda: self.http("requests_total", "other", "other", status=501)
                 in server.metrics(), "the last request's figures")
        routes = {match[1] for match in map(re.compile(r'route="([^"]*)"').search, server.metrics())
                  if match}
        self.assertLessEqual(len(routes), 30)
        for route in routes:
            self.assertRegex(route, r"^(other|/[a-z0-9_/-]*(<[a-z]+>(/[a-z<>/]*)?)?)$")

    def test_cut_requests_are_counted(self):
        server = self.server()
        data = bytes(64 * MIB)
        digest = digest_of(data)
        self.assertEqual(server.http.upload("vm", data, digest).status, 201)
        before = server.metrics()
        connection = server.http.connect()
        connection.request("GET", f"/v2/vm/blobs/{digest}")
        connection.getresponse().read(1)
        connection.close()
        self.assert_grows(server, before, {self.http("cut_requests_total", BLOB, "GET"): 1})

    # -- Request IDs ------------------------------------------------------------------------------

    def test_every_reply_has_the_id_of_its_request(self):
        server = self.server()
        for nr, (method, path, status) in enumerate((
                ("GET", "/healthz", 200), ("GET", "/readyz", 200), ("GET", "/metrics", 200),
                ("GET", "/v2/", 200), ("GET", "/nothing", 404), ("GET", "/v2/%zz", 400),
                ("DELETE", "/metrics", 405), ("BREW", "/metrics", 501),
                ("GET", "/v1/disks/vm:none", 404), ("GET", "/" + 9000 * "a", 414))):
            with self.subTest(path=path[:40], method=method):
                answer = server.http.request(method, path, headers={"X-Request-Id": f"mine.{nr}"})
                self.assertEqual(answer.status, status)
                self.assertEqual(answer.headers.get_all("X-Request-Id"), [f"mine.{nr}"])
                if status >= 400:
                    detail = answer.json()["errors"][0]["detail"]
                    self.assertEqual(detail["requestId"], f"mine.{nr}")
                wait_for(lambda: logged(server, event="request", request_id=f"mine.{nr}",
                                        status=status, method=method), "its line in the log")

    def test_ids_that_are_not_sane_are_replaced(self):
        server = self.server()
        made = set()
        for bad in ("", "a b", 'a"b', "a\\b", "a=" + chr(0xe9), 65 * "a", "a\tb", "a,b;c"):
            answer = server.http.request("GET", "/v2/", headers={"X-Request-Id": bad.encode("latin-1")})
            self.assertRegex(answer.headers["X-Request-Id"], r"^[0-9a-f]{8}-[0-9a-f]+$")
            made.add(answer.headers["X-Request-Id"])
        self.assertEqual(len(made), 8)
        longest = 64 * "a"
        answer = server.http.request("GET", "/v2/", headers={"X-Request-Id": longest})
        self.assertEqual(answer.headers["X-Request-Id"], longest)

    def clients_ids(self, server, **fields):
        """What the cairn command has called its requests: (which command, which of its requests)."""
        return re.findall(r" request_id=([0-9a-f]{16})-([0-9a-f]+) ",
                          "\n".join(logged(server, event="request", **fields)))

    def test_the_clients_failures_name_the_line_of_the_log(self):
        server = self.server()
        path = self.disk(server)
        said = server.cairn("info", "vm:none", code=1).stderr.decode()
        request_id = re.search(r"request ([0-9a-f]{16}-[0-9a-f]+)", said)
        self.assertIsNotNone(request_id, said)
        wait_for(lambda: logged(server, event="request", request_id=request_id[1], status=404),
                 "the line of the failure")
        before = {command for command, _ in self.clients_ids(server)}
        server.push(path, "vm:v2")

        def of_the_push(**fields):
            return [each for each in self.clients_ids(server, **fields) if each[0] not in before]
        wait_for(lambda: of_the_push(method="PUT", status=201), "the push in the log")
        ids = of_the_push()
        self.assertEqual(len(ids), len(set(ids)))
        self.assertEqual(len({command for command, _ in ids}), 1, ids)

    def test_a_failure_without_an_answer_names_its_request(self):
        server = self.server()
        url = server.url
        server.kill()
        self.processes.remove(server)
        said = run(CAIRN, "info", "vm:v1", code=1, env={"CAIRN_SERVER": url}).stderr.decode()
        self.assertRegex(said, r"\(request [0-9a-f]{16}-[0-9a-f]+\)")

    def test_a_line_of_the_log(self):
        server = self.server()
        self.disk(server)
        server.http.get("/v1/disks/vm:v1/data", X_Request_Id="look", Range="bytes=0-4095")
        line, = wait_for(lambda: logged(server, request_id="look"), "the line")
        self.assertRegex(line, r"^ts=\S+Z level=info event=request method=GET "
                               r"path=/v1/disks/vm:v1/data status=206 bytes_in=0 bytes_out=4096 "
                               r"dur_ms=\d+\.\d{3} request_id=look client=127\.0\.0\.1$")

    def client_of(self, server, *lines):
        """Whom the log calls the client of a request with these lines of X-Forwarded-For."""
        request_id = f"{self.rng.randrange(1 << 60):x}"
        reply = ask(server.port, head("GET", "/healthz", f"X-Request-Id: {request_id}",
                                      *(f"X-Forwarded-For: {line}" for line in lines)))
        self.assertEqual(reply.status, 200)
        line, = wait_for(lambda: logged(server, request_id=request_id), "the line")
        return re.search(r" client=(.*)$", line)[1]

    def test_the_log_names_the_client_that_trusted_proxies_name(self):
        behind = self.server("--trusted-proxies", "127.0.0.0/8, 2001:db8::/32")
        for lines, client in (
                ((), "127.0.0.1"),
                (("203.0.113.1",), "203.0.113.1"),
                (("198.51.100.9, 203.0.113.1, 2001:db8::7",), "203.0.113.1"),
                # what HAProxy adds is a line of its own
                (("198.51.100.9", "203.0.113.1"), "203.0.113.1"),
                (("203.0.113.1", *(17 * ["2001:db8::7"])), "2001:db8::7"),
                (("203.0.113.1 level=error",), "127.0.0.1"),
                (("203.0.113.1", "[::1]:80"), "127.0.0.1"),
                ((10000 * "1," + "203.0.113.1",), "203.0.113.1")):
            with self.subTest(lines=[line[:40] for line in lines]):
                self.assertEqual(self.client_of(behind, *lines), client)

    def test_the_log_names_the_peer_whatever_it_claims(self):
        for arguments in ((), ("--trusted-proxies", "192.0.2.1,::1")):
            server = self.server(*arguments)
            self.assertEqual(self.client_of(server, "203.0.113.1"), "127.0.0.1")
            self.assertEqual(self.client_of(server, "203.0.113.1", "192.0.2.1"), "127.0.0.1")
            server.stop()
            self.processes.remove(server)

    def test_the_log_names_the_clients_of_our_haproxy(self):
        server = self.server("--trusted-proxies", "127.0.0.1")
        address = f"127.0.0.1:{server.port}"
        proxy = self.own(HaProxy(self.tmp, address, address))
        for claim in ({}, {"X-Forwarded-For": "203.0.113.1"}):
            request_id = f"claim.{len(claim)}"
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60,
                                                    source_address=("127.0.0.5", 0))
            connection.request("GET", "/v2/", headers={"X-Request-Id": request_id, **claim})
            self.assertEqual(connection.getresponse().status, 200)
            connection.close()
            wait_for(lambda: logged(server, request_id=request_id, client="127.0.0.5"),
                     "the client's line")

    # -- Readiness --------------------------------------------------------------------------------

    def ready(self, server):
        answer = server.http.get("/readyz")
        body = answer.json()
        self.assertEqual(answer.status, 503 if body["status"] == "unready" else 200)
        return body["status"], {name: part["state"] for name, part in body["parts"].items()}, body

    def test_a_server_that_can_serve_is_ready(self):
        server = self.server()
        self.assertEqual(self.ready(server)[:2],
                         ("ready", {"server": "ok", "store": "ok", "workers": "ok"}))
        self.assertEqual(server.http.request("HEAD", "/readyz").status, 200)
        figures = server.metrics()
        self.assertEqual((figures["cairn_ready"], figures['cairn_part_ok{part="store"}']), (1, 1))

    def test_a_store_that_is_gone_is_unready_and_says_why(self):
        server = self.server()
        hidden = self.tmp / "hidden"
        (server.store / "tmp").rename(hidden)
        wait_for(lambda: self.ready(server)[0] == "unready", "503")
        body = self.ready(server)[2]
        self.assertEqual(body["parts"]["store"]["state"], "failed")
        self.assertIn("No such file or directory", body["parts"]["store"]["reason"])
        self.assertEqual(server.metrics()["cairn_ready"], 0)
        self.assertEqual(server.http.get("/healthz").status, 200)
        hidden.rename(server.store / "tmp")
        wait_for(lambda: self.ready(server)[0] == "ready", "200")

    def test_without_redis_the_server_is_degraded(self):
        server = self.server("--redis", "127.0.0.1:1")

        def asked():
            self.disk(server)
            return self.ready(server)[0] == "degraded"
        wait_for(asked, "the breaker to open")
        self.assertEqual(self.ready(server)[1]["redis"], "degraded")
        self.assertEqual(server.metrics()["cairn_redis_nodes_down"], 1)
        self.assertEqual(server.metrics()["cairn_ready"], 1)

    def test_a_server_that_is_told_to_stop_drains_first(self):
        server = self.server("--drain-time", "3600")
        self.disk(server)
        data = server.http.data("vm:v1")
        server.popen.send_signal(signal.SIGTERM)
        wait_for(lambda: self.ready(server)[0] == "unready", "503 while it drains")
        self.assertEqual(self.ready(server)[1]["server"], "failed")
        self.assertEqual(server.http.data("vm:v1"), data)
        self.disk(server, "vm:v2")
        wait_for(lambda: logged(server, event="draining"), "its line")
        server.stop()  # a second SIGTERM does not wait for the hour to be over

    def test_draining_ends_by_itself(self):
        server = self.server("--drain-time", "1")
        server.stop()
        self.assertTrue(logged(server, event="draining"))

    # -- The log's level --------------------------------------------------------------------------

    def level(self, server):
        return server.http.get("/v1/log-level").json()["level"]

    def test_the_level_changes_by_request(self):
        server = self.server()
        self.assertEqual(self.level(server), "info")
        for body in (b"error", b' {"level": "error"}\n', b"error\n"):
            self.assertEqual(server.http.request("PUT", "/v1/log-level", b"info").status, 200)
            answer = server.http.request("PUT", "/v1/log-level", body)
            self.assertEqual((answer.status, answer.json()), (200, {"level": "error"}))
        connection = server.http.connect()  # on which one request is over before the next begins
        for method, path, body, name in (("GET", "/v2/", None, "unseen"),
                                         ("PUT", "/v1/log-level", b"debug", "louder"),
                                         ("GET", "/v2/", None, "seen")):
            connection.request(method, path, body, {"X-Request-Id": name})
            self.assertEqual(connection.getresponse().read()[:1], b"{")
        connection.close()
        wait_for(lambda: logged(server, request_id="seen"), "a line")
        self.assertEqual(logged(server, request_id="unseen"), [])
        self.assertEqual(len(logged(server, event="log-level", to="debug", by="louder")), 1)

    def test_levels_that_are_none_are_refused(self):
        server = self.server()
        for body in (b"", b"loud", b"{}", b'{"level": 3}', b'{"level": "INFO"}', b"\x00info",
                     b"info\x00", b"info debug", b"\xff\xfe"):
            answer = server.http.request("PUT", "/v1/log-level", body)
            self.assertEqual(answer.status, 400, body)
            self.assertEqual(answer.error[0], "BAD_REQUEST")
        self.assertEqual(server.http.request("PUT", "/v1/log-level", bytes(257)).status, 413)
        self.assertEqual(self.level(server), "info")

    def test_the_level_changes_by_signal(self):
        server = self.server()
        for number, level in ((signal.SIGUSR1, "debug"), (signal.SIGUSR2, "info"),
                              (signal.SIGUSR2, "warn"), (signal.SIGUSR2, "error"),
                              (signal.SIGUSR1, "warn")):
            server.popen.send_signal(number)
            wait_for(lambda: self.level(server) == level, f"level {level}")
        server.popen.send_signal(signal.SIGUSR1)
        wait_for(lambda: self.level(server) == "info", "level info")
        wait_for(lambda: len(logged(server, event="log-level")) == 6, "the last one's line")

    # -- Prometheus and Grafana -------------------------------------------------------------------

    def names(self, server):
        """The names of all series that a server shows which has done a little of everything."""
        self.disk(server)
        server.http.data("vm:v1")
        return wait_for(lambda: (found := {re.match(r"\w+", name)[0] for name in server.metrics()})
                        and "cairn_http_requests_total" in found and found, "figures")

    def asked_for(self, expression):
        """The names of series in a PromQL expression."""
        return set(re.findall(r"\b(?:cairn|process)_\w+\b", expression))

    def dashboard_expressions(self):
        panels = json.loads(DASHBOARD.read_text())["panels"]
        return [target["expr"] for panel in panels for target in panel.get("targets", ())]

    def test_metrics_are_what_prometheus_expects(self):
        server = self.server()
        self.names(server)
        said = run("promtool", "check", "metrics", stdin=server.http.get("/metrics").body)
        self.assertEqual(said.stdout + said.stderr, b"")

    def test_alerts_and_dashboard_ask_for_what_there_is(self):
        names = self.names(self.server("--redis", "127.0.0.1:1"))
        rules = (PROMETHEUS / "alerts.yml").read_text()
        exported = {name for text in re.findall(r"expr:(.*?)\n\s+(?:for|labels):", rules, re.S)
                    for name in self.asked_for(text)}
        self.assertGreater(len(exported), 10)
        for expression in self.dashboard_expressions():
            exported |= self.asked_for(expression)
        self.assertEqual(exported - names, set())

    def test_rules_and_scrape_configuration_are_valid(self):
        run("promtool", "check", "rules", PROMETHEUS / "alerts.yml")
        run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")

    def test_alerts_fire_when_they_should(self):
        run("promtool", "test", "rules", PROMETHEUS / "alerts_test.yml")
        alerts = set(re.findall(r"- alert: (\w+)", (PROMETHEUS / "alerts.yml").read_text()))
        tried = set(re.findall(r"- name: (\w+)", (PROMETHEUS / "alerts_test.yml").read_text()))
        self.assertEqual(alerts, tried)

    def test_the_dashboards_expressions_are_promql(self):
        rules = [{"record": f"x:{nr}", "expr": expression.replace("$__rate_interval", "5m")
                  .replace("$instance", ".*")}
                 for nr, expression in enumerate(self.dashboard_expressions())]
        path = self.tmp / "rules.yml"
        path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        said = run("promtool", "check", "rules", path)
        self.assertIn(f"{len(rules)} rules found".encode(), said.stdout)

    def test_the_dashboard_is_laid_out(self):
        dashboard = json.loads(DASHBOARD.read_text())
        panels = dashboard["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        self.assertEqual([v["name"] for v in dashboard["templating"]["list"]],
                         ["datasource", "instance"])
        taken = set()
        for panel in panels:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                     for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(cells & taken, panel["title"])
            self.assertLessEqual(at["x"] + at["w"], 24)
            taken |= cells
            if panel["type"] != "row":
                self.assertTrue(panel["targets"] and panel["title"])
                for target in panel["targets"]:
                    self.assertEqual(target["datasource"]["uid"], "${datasource}")


if __name__ == "__main__":
    main()
