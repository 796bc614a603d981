"""Receivers of signals, each a process of its own: an MLLP server (hl7's), and an HTTP server for FHIR and webhooks.

How one behaves is written in its folder's file `mode`, which it reads with each message:

    ok      takes it          later   500, or no acknowledgement       refuse   400, or AE with an error code
    cut     takes it, and breaks off in the middle of its answer        silent   takes it, and hangs up without one
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hl7
from hl7.mllp import start_hl7_server

from peers import free_port, is_open, wait_until
from plugin.settings import SignalReceiver

SECRET = "a secret of the receiver and us"
ADDRESSES = {"hl7": "mllp://ris:2575", "fhir": "https://fhir/r4", "webhook": "https://hook/"}


def row(kind: str, **changes: Any) -> SignalReceiver:
    """The settings of a receiver that no one need be at."""
    return SignalReceiver(**{"name": kind, "kind": kind, "address": ADDRESSES[kind], "secret": SECRET} | changes)


class Receiver:
    """One that can be stopped, killed, and started again at the same port."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.port, self._folder = kind, free_port(), folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.behave("ok")

    def behave(self, mode: str) -> None:
        (self._folder / "mode").write_text(mode)

    def start(self) -> None:
        command = [sys.executable, __file__, self.kind, str(self.port), str(self._folder)]
        self._process = subprocess.Popen(command)
        wait_until(lambda: is_open(self.port), f"the {self.kind} receiver")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    @property
    def address(self) -> str:
        return f"{'mllp' if self.kind == 'mllp' else 'http'}://127.0.0.1:{self.port}"

    @property
    def received(self) -> list[dict[str, Any]]:
        """Every message that came, with the mode in which it was answered."""
        file = self._folder / "received.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@contextmanager
def receiving(kind: str, folder: Path, *, start: bool = True) -> Iterator[Receiver]:
    receiver = Receiver(kind, folder)
    if start:
        receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


# ---- in the receiver's process -----------------------------------------------------------------------------


def keep(folder: Path, **what: Any) -> str:
    """Write down what came; how to answer it."""
    mode = (folder / "mode").read_text()
    with (folder / "received.jsonl").open("a") as file:
        file.write(json.dumps({"mode": mode, **what}) + "\n")
    return mode


def acknowledgement(message: hl7.Message, mode: str) -> str:
    code = {"refuse": "AE", "later": ""}.get(mode, "AA")
    answer = str(message.create_ack(code or "AA"))
    if mode == "later":
        return "MSH|^~\\&|busy\r"
    return answer + "ERR|||207^Application internal error|E\r" if mode == "refuse" else answer


async def serve_mllp(port: int, folder: Path) -> None:
    async def serve(reader: Any, writer: Any) -> None:
        try:
            while True:
                message = await reader.readmessage()
                mode = keep(folder, text=str(message))
                answer = acknowledgement(message, mode).encode()
                if mode == "cut":
                    writer.write(b"\x0b" + answer[: len(answer) // 2])
                elif mode != "silent":
                    writer.writeblock(answer)
                await writer.drain()
                if mode in ("cut", "silent"):
                    break
        except EOFError:
            pass
        finally:
            writer.close()

    async with await start_hl7_server(serve, "127.0.0.1", port, encoding="utf-8") as server:
        await server.serve_forever()


class Handler(BaseHTTPRequestHandler):
    """As a FHIR server, puts a transaction's resources in the place of those with the same identifier."""

    folder: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        mode = keep(self.folder, body=body, headers=dict(self.headers), path=self.path)
        if mode == "silent":
            self.close_connection = True
            return
        status = {"later": 500, "refuse": 400}.get(mode, 200)
        answer = self.answer(json.loads(body)) if status == 200 else b"{}"
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer[: len(answer) // 2] if mode == "cut" else answer)
        self.close_connection = mode == "cut"

    def answer(self, body: dict[str, Any]) -> bytes:
        entries = [{"response": {"status": "200 OK"}} for _ in body.get("entry", ())]
        return json.dumps({"resourceType": "Bundle", "type": "transaction-response", "entry": entries}).encode()

    def log_message(self, *_: object) -> None:
        """Silent."""


def main(kind: str, port: int, folder: Path) -> None:
    if kind == "mllp":
        asyncio.run(serve_mllp(port, folder))
    else:
        Handler.folder = folder
        ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
