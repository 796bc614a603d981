"""TLS by BCP 195 (RFC 9325; PS3.15 sections B.9 and B.10): both contexts, from the settings' files.

TLS 1.2 or newer, only ciphers with forward secrecy and authenticated encryption, no renegotiation, no compression. A
peer is trusted if its certificate is of the authority in ``tls_ca``, and of no other.
"""

import ssl
from pathlib import Path
from typing import Protocol

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2 (RFC 9325 section 4.2); those of TLS 1.3 are all of this kind."""


class TlsError(ValueError):
    """A file that the settings name cannot be used; the text says which, and why."""


class Files(Protocol):
    """Paths of PEM files; "" where there is none."""

    @property
    def tls_certificate(self) -> str: ...
    @property
    def tls_key(self) -> str: ...
    @property
    def tls_ca(self) -> str: ...


def server_context(files: Files, *, require_certificate: bool) -> ssl.SSLContext:
    """For a listener with ``tls_certificate``; with `require_certificate` a peer must show one of ``tls_ca``.

    Raises TlsError.
    """
    context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    _load_own(context, files)
    if files.tls_ca:
        _load_trusted(context, files)
        context.verify_mode = ssl.CERT_OPTIONAL
    if require_certificate:
        if not files.tls_ca:
            raise TlsError("tls_ca must name the authority of the peers' certificates")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(files: Files, *, check_hostname: bool = True) -> ssl.SSLContext:
    """For a sender: the peer must show a certificate of ``tls_ca``, or where that is "", of the system's authorities.

    With ``tls_certificate`` it shows its own, if asked. Raises TlsError.
    """
    context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.check_hostname = check_hostname
    if files.tls_ca:
        _load_trusted(context, files)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if files.tls_certificate:
        _load_own(context, files)
    return context


def _strict(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    return context


def _load_own(context: ssl.SSLContext, files: Files) -> None:
    certificate = _readable("tls_certificate", files.tls_certificate)
    key = _readable("tls_key", files.tls_key) if files.tls_key else certificate
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"tls_key: {key} is not the key of tls_certificate {certificate}") from None
        raise TlsError(
            f"tls_certificate {certificate} or tls_key {key} is not PEM of a certificate and a key"
        ) from None


def _load_trusted(context: ssl.SSLContext, files: Files) -> None:
    path = _readable("tls_ca", files.tls_ca)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise TlsError(f"tls_ca: {path} is not PEM of one or more certificates") from None


def _readable(setting: str, name: str) -> Path:
    path = Path(name).expanduser()
    try:
        path.open("rb").close()
    except OSError as error:
        raise TlsError(f"{setting}: {path} cannot be read: {error.strerror}") from None
    return path


def _no_password() -> str:
    raise TlsError("tls_key is encrypted, and nobody is here to type its password: store it unencrypted, mode 0600")
