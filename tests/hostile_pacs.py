"""A PACS by DICOMweb on a free port, in this process, that behaves as badly as it is told to."""

import io
import json
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydicom import Dataset, dcmwrite

BOUNDARY = "part"
Trick = Callable[["Request"], None]


def part10(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


@dataclass
class Pacs:
    """What it holds, and its tricks.

    `cap`: the most entries of an answer; `knows_offset`, `knows_dates`: whether it heeds them; `repeats`: every n-th
    entry comes twice; `drops`: an entry is lost where two pages meet. `trick` is called with each request, and may
    answer it itself.
    """

    studies: dict[str, dict[str, list[Dataset]]]
    cap: int = 1000
    knows_offset: bool = True
    knows_dates: bool = True
    repeats: int = 0
    drops: bool = False
    trick: Trick = lambda request: None
    asked: Counter[str] = field(default_factory=Counter)
    url: str = ""

    def find_studies(self, query: dict[str, str]) -> list[dict[str, Any]]:
        limit, offset = int(query.get("limit", 1000)), int(query.get("offset", 0))
        first, _, last = query.get("StudyDate", "-").partition("-")
        rows = []
        for uid, series in sorted(self.studies.items()):
            one = next(iter(series.values()))[0]
            inside = first <= one.StudyDate <= (last or "9") if _ else one.StudyDate == first
            if inside or not self.knows_dates:
                rows.append(study_json(uid, one, sum(map(len, series.values()))))
        rows = rows[offset if self.knows_offset else 0 :][: min(limit, self.cap)]
        if self.drops and offset:
            rows = rows[1:]
        return [
            row for i, row in enumerate(rows, start=1) for _ in range(1 + bool(self.repeats and not i % self.repeats))
        ]


def study_json(uid: str, one: Dataset, count: int) -> dict[str, Any]:
    return {
        "0020000D": {"vr": "UI", "Value": [uid]},
        "00080020": {"vr": "DA", "Value": [one.StudyDate]},
        "00081030": {"vr": "LO", "Value": [str(one.get("StudyDescription", ""))]},
        "00080061": {"vr": "CS", "Value": ["CT"]},
        "00100020": {"vr": "LO", "Value": [one.PatientID]},
        "00201208": {"vr": "IS", "Value": [count]},
    }


def series_json(uid: str, datasets: Sequence[Dataset]) -> dict[str, Any]:
    one = datasets[0]
    return {
        "0020000E": {"vr": "UI", "Value": [uid]},
        "00080060": {"vr": "CS", "Value": [one.Modality]},
        "00180015": {"vr": "CS", "Value": [one.BodyPartExamined]},
        "0008103E": {"vr": "LO", "Value": [one.SeriesDescription]},
        "00201209": {"vr": "IS", "Value": [len(datasets)]},
    }


@dataclass
class Request:
    """One request, on its way to an answer. `number`: how often this path was asked for, from 1 on."""

    pacs: Pacs
    handler: BaseHTTPRequestHandler
    path: str
    number: int
    is_answered: bool = False

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.is_answered = True
        handler = self.handler
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", headers.pop("length", str(len(body))))
        handler.end_headers()
        handler.wfile.write(body)

    def json(self, rows: list[Any]) -> None:
        self.answer(200, json.dumps(rows).encode(), Content_Type="application/dicom+json")

    def multipart(self, datasets: Sequence[Dataset], *, cut: int | None = None) -> None:
        """`cut`: the body ends after so many bytes, and so does the connection."""
        parts = [b"\r\nContent-Type: application/dicom\r\n\r\n" + part10(dataset) + b"\r\n" for dataset in datasets]
        body = b"".join(b"--" + BOUNDARY.encode() + part for part in parts) + f"--{BOUNDARY}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        self.answer(200, body[:cut], Content_Type=kind)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class _Handler(BaseHTTPRequestHandler):
    pacs: Pacs
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.pacs.asked[parts.path] += 1
        request = Request(self.pacs, self, parts.path, self.pacs.asked[parts.path])
        self.pacs.trick(request)
        if not request.is_answered:
            self._answer(request, {name: values[0] for name, values in parse_qs(parts.query).items()})

    def _answer(self, request: Request, query: dict[str, str]) -> None:
        names = re.findall(r"/(studies|series|instances)(?:/([0-9.]+))?", request.path)
        uids = {level: uid for level, uid in names if uid}
        level, uid = names[-1]
        if level == "studies" and not uid:
            request.json(self.pacs.find_studies(query))
            return
        series = self.pacs.studies.get(uids["studies"])
        if series is None:
            request.answer(404)
        elif level == "series" and not uid:
            offset = int(query.get("offset", 0))
            request.json([series_json(uid, datasets) for uid, datasets in series.items()][offset:])
        elif level == "series":
            request.multipart(series[uid]) if uid in series else request.answer(404)
        else:
            self._instances(request, series.get(uids["series"], []), uid, int(query.get("offset", 0)))

    def _instances(self, request: Request, datasets: Sequence[Dataset], uid: str, offset: int) -> None:
        if not uid:
            request.json([{"00080018": {"vr": "UI", "Value": [d.SOPInstanceUID]}} for d in datasets][offset:])
            return
        found = [dataset for dataset in datasets if uid == dataset.SOPInstanceUID]
        request.multipart(found) if found else request.answer(404)


@contextmanager
def pacs(datasets: Sequence[Dataset], **behaviour: Any) -> Iterator[Pacs]:
    """A PACS that holds these instances."""
    studies: dict[str, dict[str, list[Dataset]]] = defaultdict(lambda: defaultdict(list))
    for dataset in datasets:
        studies[dataset.StudyInstanceUID][dataset.SeriesInstanceUID].append(dataset)
    made = Pacs({uid: dict(series) for uid, series in studies.items()}, **behaviour)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"pacs": made}))
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


def at_first(path: str, act: Callable[[Request], None], times: int = 1) -> Callable[[Request], None]:
    """A trick that is played so often with each path that has this in it."""

    def trick(request: Request) -> None:
        if path in request.path and request.number <= times:
            act(request)

    return trick


def all_of(request: Request) -> list[Dataset]:
    """The instances of the one series of the study that is asked for."""
    (uid,) = [uid for uid in request.pacs.studies if uid in request.path]
    return next(iter(request.pacs.studies[uid].values()))
