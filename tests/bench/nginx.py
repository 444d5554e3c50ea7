# SPDX-License-Identifier: Apache-2.0
"""nginx serving the files of a folder, for benches to compare with."""

import os

from cairntest import Http, Process, wait_for


class Nginx(Process):
    """On a free port; .url.  extra: lines for its http section."""

    def __init__(self, folder, probe, extra="access_log off;"):
        for port in range(20000 + os.getpid() % 10000, 40000):
            self.configure(folder, port, extra)
            super().__init__(["nginx", "-p", folder, "-c", folder / "nginx.conf"],
                             folder / "nginx.log")
            self.http, self.url = Http(port), f"http://127.0.0.1:{port}"
            wait_for(lambda: not self.running or self.answers(probe), "nginx")
            if self.running:
                return
        raise SystemExit(f"nginx does not start:\n{self.describe()}")

    @staticmethod
    def configure(folder, port, extra):
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.error;\n"
            "worker_processes 2; events {}\n"
            f"http {{ sendfile on; keepalive_requests 1000000000; {extra}\n"
            f"client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;\n"
            f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
            f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
            + ("user root;\n" if os.geteuid() == 0 else ""))

    def answers(self, probe):
        try:
            return self.http.request("HEAD", f"/{probe}").status == 200
        except OSError:
            return False
