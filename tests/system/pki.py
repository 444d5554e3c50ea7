# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests, made by the openssl command: authorities and what they sign."""

import ssl

from cairntest import run


class Authority:
    """A certificate authority in a folder of its own."""

    def __init__(self, folder, name="authority"):
        self.folder = folder / name
        self.folder.mkdir()
        self.cert, self.key = self.folder / "ca.crt", self.folder / "ca.key"
        run("openssl", "req", "-x509", *NEW_KEY, "-keyout", self.key, "-out", self.cert,
            "-subj", f"/CN={name}", "-days", "2")

    def sign(self, name, days=2, hosts="IP:127.0.0.1,DNS:localhost", purpose=None):
        """A certificate and its key, as paths; days below 0: it has expired."""
        request, cert, key, extensions = (self.folder / f"{name}.{kind}"
                                          for kind in ("csr", "crt", "key", "ext"))
        extensions.write_text(f"subjectAltName={hosts}\n"
                              + (f"extendedKeyUsage={purpose}\n" if purpose else ""))
        run("openssl", "req", *NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        run("openssl", "x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self.key,
            "-days", days, "-extfile", extensions, "-out", cert)
        return cert, key

    def context(self, pair=None):
        """How a client trusts this authority, and proves itself with a pair of sign()."""
        context = ssl.create_default_context(cafile=self.cert)
        if pair:
            context.load_cert_chain(*pair)
        return context


NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
