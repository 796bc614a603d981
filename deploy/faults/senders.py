"""Senders that keep account: dcmsend and STOW-RS, which send again what was not acknowledged, as a modality does."""

import json
import random
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from .material import Item

TRY_AGAIN_SECONDS = 0.4
BOUNDARY = "hlip-faults"
CONTENT_TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
_ANSWER = re.compile(
    r"INCOMING DIMSE MESSAGE =+$.*?^D: Message Type +: C-STORE RSP$.*?^D: Affected SOP Instance UID +: ([0-9.]+)$"
    r".*?^D: DIMSE Status +: 0x([0-9a-f]{4})",
    re.MULTILINE | re.DOTALL,
)


def dcmsend(items: Sequence[Item], port: int, log: Path, *, max_pdu: int = 131072) -> set[str]:
    """Send over one association by dcmtk's dcmsend; the SOPInstanceUIDs answered 0x0000, by its own log.

    An association that breaks, or an answer that never comes, ends it; what was answered before counts.
    """
    options = ["-d", "-nh", "-ma", "-aet", "FAULTS", "-aec", "HLIP", "-to", "5", "-ta", "10", "-td", "20"]
    command = ["dcmsend", *options, "--max-send-pdu", str(max_pdu), "127.0.0.1", str(port)]
    done = subprocess.run(
        [*command, *(str(item.path) for item in items)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    with log.open("a") as file:
        file.writelines(line + "\n" for line in done.stdout.splitlines() if not line.startswith("D:"))
    return {uid for uid, status in _ANSWER.findall(done.stdout) if status == "0000"}


def multipart(contents: Sequence[bytes]) -> bytes:
    """The body of a STOW-RS request (PS3.18 section 10.5)."""
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(head + content + b"\r\n" for content in contents) + f"--{BOUNDARY}--\r\n".encode()


def stow(items: Sequence[Item], port: int, log: Path, *, max_pdu: int = 0) -> set[str]:
    """Send by one STOW-RS request; the SOPInstanceUIDs that the answer lists as stored. `max_pdu` is not for this."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        body = multipart([item.path.read_bytes() for item in items])
        headers = {"Content-Type": CONTENT_TYPE, "Accept": "application/dicom+json"}
        connection.request("POST", "/dicom-web/studies", body, headers)
        answer = connection.getresponse()
        said = json.loads(answer.read() or b"{}")
        status = str(answer.status)
    except (OSError, HTTPException, ValueError) as error:
        said, status = {}, type(error).__name__
    finally:
        connection.close()
    with log.open("a") as file:
        file.write(f"STOW-RS of {len(items)}: {status}\n")
    stored = said.get("00081199", {}).get("Value", []) if isinstance(said, dict) else []
    return {str(row["00081155"]["Value"][0]) for row in stored}


WAYS: dict[str, Callable[..., set[str]]] = {"dcmsend": dcmsend, "stow": stow}


@dataclass
class Ledger:
    """What was sent, and what of it was acknowledged; by all senders of a round."""

    sent: Counter[Item] = field(default_factory=Counter)
    acknowledged: Counter[Item] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, items: Sequence[Item], answered: set[str]) -> None:
        with self.lock:
            self.sent.update(items)
            self.acknowledged.update(item for item in items if item.sop_uid in answered)


@dataclass(frozen=True)
class Sending:
    """What one sender has to send, and how.

    In so many `associations` (or requests), one after the other, with up to `pause` seconds between two.
    It begins once `starts` says so.
    """

    items: tuple[Item, ...]
    way: str = "dcmsend"
    associations: int = 2
    pause: float = 0.5
    starts: Callable[[], bool] = lambda: True


def send_all(sending: Sending, port: int, ledger: Ledger, log: Path, rng: random.Random, stop: threading.Event) -> None:
    """Send until everything is acknowledged, or stopped."""
    while not sending.starts():
        if stop.wait(0.1):
            return
    size = -(-len(sending.items) // sending.associations)
    for at in range(0, len(sending.items), size):
        left = list(sending.items[at : at + size])
        while left and not stop.is_set():
            answered = WAYS[sending.way](left, port, log, max_pdu=rng.choice((4096, 16384, 131072)))
            ledger.enter(left, answered)
            left = [item for item in left if item.sop_uid not in answered]
            stop.wait(TRY_AGAIN_SECONDS if left else rng.uniform(0, sending.pause))
