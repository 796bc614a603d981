"""The listener and the web server as a site runs them, with canaries around their data folder, for hostile input."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from json import loads
from pathlib import Path

import requests

import hostile
import hostile_wire as wire
from associations import P_DATA
from hostile_elements import NAME
from peers import free_port, is_open, wait_until
from plugin.bootstrap import Plugin
from plugin.dimse import Peer, echo
from plugin.scheduler import Scheduler
from road import settings

NETWORK_SECONDS, PATIENCE_SECONDS = 5, 0.5
DEADLINE_SECONDS = NETWORK_SECONDS + 25  # with room for a busy machine
MOST_MEMORY = 96e6
"""Bytes that a server may take at its worst beyond what it had after its first honest work."""
LOG_OF_A_MISTAKE = ("Traceback", "Exception in thread", "request failed", "Exception ignored", NAME, "Canary")


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had."""
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmHWM"))


@dataclass
class Site:
    """`hlip listen` and `hlip web` on one data folder, with a folder of canaries around it."""

    root: Path
    listener_port: int = field(default_factory=free_port)
    web_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    outside: dict[str, bytes] = field(default_factory=dict)
    told: int = 0

    def __post_init__(self) -> None:
        self.folder = self.root / "one" / "two" / "three"
        self.log, self.cwd = self.root / "log", self.root / "cwd"
        for path in (self.folder, self.cwd, self.root / "one" / "canary"):
            path.mkdir(parents=True)
        (self.root / "one" / "canary" / "file").write_bytes(b"as it was")
        self.plugin = Plugin(settings(self.folder, spool={"min_free_gigabytes": 0}))
        self.spool = self.plugin.spool

    def start(self) -> None:
        variables = {
            "SPOOL__FOLDER": str(self.spool.folder), "SPOOL__MIN_FREE_GIGABYTES": "0", "LOG__LEVEL": "debug",
            "LISTENER__PORT": str(self.listener_port), "WEB__PORT": str(self.web_port),
            "LISTENER__NETWORK_TIMEOUT_SECONDS": str(NETWORK_SECONDS), "WEB__TIMEOUT_SECONDS": str(NETWORK_SECONDS),
            "AUDIT__FILE": str(self.spool.folder / "audit.log"), "COMMITMENT__ENABLED": "true",
            "COMMITMENT__REQUESTERS": '[{"ae_title": "RAW", "host": "127.0.0.1", "port": 9}]',
        }  # fmt: skip
        environment = os.environ | {f"HLIP_{name}": value for name, value in variables.items()}
        with self.log.open("wb") as log:
            for role in ("listen", "web"):
                command = [sys.executable, "-P", "-m", "plugin", role]
                self.processes[role] = subprocess.Popen(command, env=environment, cwd=self.cwd, stdout=log, stderr=log)
        self.plugin.database.upgrade()
        wait_until(lambda: is_open(self.listener_port) and is_open(self.web_port), "the servers to start", 90)
        self.take_in(sum(self.converse(wire.conversation(n)).acknowledged for n in range(10)))
        self.take_in(self.post(wire.Post(wire.part(hostile.honest(999).part10) + wire.LAST)))
        self.peaks = {role: peak_bytes(process.pid) for role, process in self.processes.items()}
        self.outside = self.surroundings()

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(60)
        self.plugin.database.close()

    def surroundings(self) -> dict[str, bytes]:
        """All files around the data folder but the log."""
        found = (path for path in self.root.rglob("*") if self.spool.folder not in (path, *path.parents))
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in found if path != self.log}

    # ---- what is said ------------------------------------------------------------------------------------

    def converse(
        self, said: Sequence[bytes], *, port: int = 0, silent: bool = False, patient: bool = False
    ) -> "Answer":
        """Say it, and hear all that is answered until the other side hangs up.

        `silent`: without hanging up first; `patient`: hear the answer to the first piece before the others are said,
        and hang up when there is none to the last.
        """
        answer = b""
        with socket.create_connection(("127.0.0.1", port or self.listener_port), timeout=DEADLINE_SECONDS) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):  # the other side has heard enough
                for piece in said:
                    peer.sendall(piece)
                    if patient and not answer:
                        answer = peer.recv(65536)
                if patient:
                    answer += _heard(peer, PATIENCE_SECONDS)
                if not silent:
                    peer.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while piece := peer.recv(65536):
                    answer += piece
        return Answer(answer)

    def post(self, said: wire.Post) -> int:
        """How many instances the store service took. Any answer but a client's error is one of ours."""
        connection = HTTPConnection("127.0.0.1", self.web_port, timeout=DEADLINE_SECONDS)
        try:
            path = f"/dicom-web/studies{'/' if said.study else ''}{said.study}"
            connection.request("POST", path, said.body, {"Content-Type": said.content_type})
            reply = connection.getresponse()
            content = reply.read()
        except (ConnectionError, HTTPException):
            return 0  # refused before the body was read
        finally:
            connection.close()
        assert reply.status in (200, 202, 307, 400, 404, 409, 413, 415), reply.status
        if reply.status not in (200, 202):
            return 0
        return len(loads(content).get("00081199", {}).get("Value", []))

    # ---- what must hold ------------------------------------------------------------------------------------

    def take_in(self, acknowledged: int) -> None:
        """Nothing but what was acknowledged lies there, and the index takes all of it."""
        wait_until(lambda: not any(self.spool.associations.iterdir()), "all that was open to be closed")
        waiting = sorted(path.name for path in self.spool.incoming.iterdir())
        assert [name for name in waiting if not name.endswith(".dcm")] == [], "something half-written"
        assert len(waiting) == acknowledged
        scheduler = Scheduler(self.plugin.settings, self.spool, self.plugin.database, lambda queue: None)
        while scheduler.index_arrivals():
            pass
        assert not any(self.spool.incoming.iterdir())
        assert not (self.spool.conflicting / "unreadable").exists(), "acknowledged, and nobody can read it"

    def check(self) -> dict[str, int]:
        """Both answer, nothing lies elsewhere, no mistake is logged. How much more memory each took at its worst."""
        assert {role: process.poll() for role, process in self.processes.items()} == {"listen": None, "web": None}
        assert echo(Peer("127.0.0.1", self.listener_port, "HLIP"))
        assert requests.get(f"http://127.0.0.1:{self.web_port}/healthz", timeout=10).json() == {"status": "ok"}
        assert self.surroundings() == self.outside
        log = self.log.read_bytes()[self.told :].decode(errors="replace")
        self.told = self.log.stat().st_size
        assert [sign for sign in LOG_OF_A_MISTAKE if sign in log] == [], log[-6000:]
        grown = {role: peak_bytes(process.pid) - self.peaks[role] for role, process in self.processes.items()}
        assert max(grown.values()) < MOST_MEMORY, grown
        return grown


def _heard(peer: socket.socket, seconds: float) -> bytes:
    """What comes until the other side hangs up, or says nothing for so long."""
    answer = b""
    peer.settimeout(seconds)
    with contextlib.suppress(TimeoutError):
        while piece := peer.recv(65536):
            answer += piece
    peer.settimeout(DEADLINE_SECONDS)
    return answer


@dataclass(frozen=True)
class Answer:
    """All that a listener said: whole PDUs, or it is a mistake."""

    content: bytes

    @property
    def pdus(self) -> list[tuple[int, bytes]]:
        found, at = [], 0
        while at < len(self.content):
            kind, length = struct.unpack_from(">BxL", self.content, at)
            assert kind in (2, 3, 4, 6, 7) and at + 6 + length <= len(self.content)
            found.append((kind, self.content[at + 6 : at + 6 + length]))
            at += 6 + length
        return found

    @property
    def statuses(self) -> list[tuple[int, int]]:
        """Command field and status of each response."""
        command, found = b"", []
        for content in (content for kind, content in self.pdus if kind == P_DATA):
            assert struct.unpack_from(">L", content)[0] == len(content) - 4 and content[5] & 1
            command += content[6:]
            if content[5] & 2:
                found.append(_field_and_status(command))
                command = b""
        return found

    @property
    def acknowledged(self) -> int:
        return self.statuses.count((0x8001, 0))


def _field_and_status(command: bytes) -> tuple[int, int]:
    elements, at = {}, 0
    while at < len(command):
        _, number, length = struct.unpack_from("<HHL", command, at)
        elements[number] = command[at + 8 : at + 8 + length]
        at += 8 + length
    return int.from_bytes(elements[0x0100], "little"), int.from_bytes(elements[0x0900], "little")
