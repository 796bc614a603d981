"""The web application on a free port, and requests to it, well-made and not."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from pydicom import Dataset

from peers import wait_until
from plugin.bootstrap import Plugin
from plugin.settings import Settings
from plugin.spool import Spool
from plugin.web.app import create_app
from plugin.web.server import serving
from road import renamed
from series import head, series
from studies import encoded

BOUNDARY = "hlip-test"
TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


@dataclass
class Web:
    """A running web application."""

    port: int
    spool: Spool

    @property
    def dicomweb(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def post(self, body: Any, *, content_type: str = TYPE, study: str = "", **headers: str) -> requests.Response:
        """POST a body as it is; `headers` with underscores for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.dicomweb}/studies{'/' if study else ''}{study}"
        return requests.post(url, data=body, headers={"Content-Type": content_type, **named}, timeout=30)

    def store(self, images: Sequence[Dataset | bytes], **more: Any) -> requests.Response:
        return self.post(multipart(images), **more)

    def raw(self, *pieces: bytes, hang_up: bool = False) -> bytes:
        """Bytes over a connection; what comes back until the server closes it (or nothing, after hanging up)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            for piece in pieces:
                connection.sendall(piece)
            answer = b""
            while not hang_up:
                try:
                    more = connection.recv(65536)
                except ConnectionResetError:
                    break
                if not more:
                    break
                answer += more
        return answer

    def head(self, length: int, *more: str) -> bytes:
        """The head of a POST whose body is said to have a length."""
        rows = (
            "POST /dicom-web/studies HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {TYPE}", f"Content-Length: {length}",
            *more,
        )  # fmt: skip
        return "".join(f"{row}\r\n" for row in (*rows, "")).encode()


def multipart(images: Sequence[Dataset | bytes], *, part_type: str = "application/dicom") -> bytes:
    """A multipart/related body of Part 10 files."""
    head = f"--{BOUNDARY}\r\nContent-Type: {part_type}\r\n\r\n".encode()
    contents = (image if isinstance(image, bytes) else encoded(image) for image in images)
    return b"".join(head + content + b"\r\n" for content in contents) + f"--{BOUNDARY}--\r\n".encode()


@contextmanager
def web(
    folder: Path, *, min_free_gigabytes: float = 0, audit: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Web]:
    """A web application on a spool in `folder`, until the end of the block."""
    plugin = Plugin(
        Settings(
            spool={"folder": folder / "data", "min_free_gigabytes": min_free_gigabytes},
            web={"port": 0, **settings},
            audit=audit or {},
        )
    )
    with serving(create_app(plugin), plugin.settings.web) as server:
        yield Web(server.port, plugin.spool)


@contextmanager
def left_clean(server: Web) -> Iterator[None]:
    """Nothing is in its spool as the block begins; it must end with nothing half-written, and no request open."""
    for path in server.spool:
        path.unlink()
    yield
    assert [path for path in server.spool.incoming.iterdir() if path.suffix != ".dcm"] == []
    wait_until(lambda: not any(server.spool.associations.iterdir()), "all requests to be closed")


# ---- what is sent, and what comes of it --------------------------------------------------------------------


def images(count: int = 3, *, name: str = "a", **elements: object) -> list[Dataset]:
    return list(renamed(series(head(count), **elements), name=name, number=2))


def stored(answer: requests.Response) -> list[str]:
    return [item["00081155"]["Value"][0] for item in answer.json().get("00081199", {}).get("Value", [])]


def reasons(answer: requests.Response) -> list[int]:
    rows = [*answer.json().get("00081198", {}).get("Value", []), *answer.json().get("0008119A", {}).get("Value", [])]
    return [item["00081197"]["Value"][0] for item in rows]


def kept(server: Web) -> list[bytes]:
    return [path.read_bytes() for path in server.spool.arrivals(1000)]
