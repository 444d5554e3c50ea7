# SPDX-License-Identifier: Apache-2.0
"""HAProxy with the configuration of deploy/, before servers of a test."""

import http.client
import signal

from cairntest import ROOT, Process, wait_for
from redis import free_port


class HaProxy(Process):
    """In front of two addresses."""

    def __init__(self, folder, first, second):
        self.port, self.status_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(["haproxy", "-db", "-f", ROOT / "deploy" / "haproxy" / "haproxy.cfg"],
                         folder / "haproxy.log",
                         env={"CAIRN_BIND": f"127.0.0.1:{self.port}", "CAIRN_TLS_PEM": "/dev/null",
                              "CAIRN_STATUS_BIND": f"127.0.0.1:{self.status_port}",
                              "CAIRN_SERVER_1": first, "CAIRN_SERVER_2": second})
        for number in (1, 2):
            self.wait_for(number, "UP")

    def state(self, number, state):
        """Does it think so of cairnd1 or cairnd2?"""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.status_port, timeout=30)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            connection.close()
        except OSError:
            return False
        line = f'haproxy_server_status{{proxy="cairn",server="cairnd{number}",state="{state}"}} 1'
        return line in text.splitlines()

    def wait_for(self, number, state):
        wait_for(lambda: self.check_running() and self.state(number, state),
                 f"HAProxy to find cairnd{number} {state}")

    def stop(self, code=-signal.SIGTERM, timeout=60):
        super().stop(code, timeout)
