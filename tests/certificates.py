"""Certificates for tests, made by openssl: an authority, and what it issues."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from peers import needs


def _openssl(*arguments: str | Path) -> None:
    subprocess.run([needs("openssl", "openssl"), *map(str, arguments)], check=True, capture_output=True)


@dataclass(frozen=True)
class Issued:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path

    @property
    def settings(self) -> dict[str, str]:
        return {"tls_certificate": str(self.certificate), "tls_key": str(self.key)}


class Authority:
    """A certificate authority with its files in `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.certificate, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                 "-keyout", self._key, "-out", self.certificate)  # fmt: skip

    def issue(self, name: str, *, host: str = "IP:127.0.0.1") -> Issued:
        """A certificate for `host`, as openssl writes a subjectAltName."""
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        issued = Issued(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        extensions.write_text(f"subjectAltName={host}\n")
        _openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
                 "-keyout", issued.key, "-out", request)  # fmt: skip
        _openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
                 "-days", "2", "-extfile", extensions, "-out", issued.certificate)  # fmt: skip
        return issued
