"""A cohort from a live archive: everything linked, nobody named."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from canaries import EXPECTED, identified, leaks
from peers import Orthanc, orthanc
from trainer.cli import app
from trainer.cohort import archive
from trainer.manifest import read_cohort

STUDIES = 50


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Orthanc, frozenset[str]]]:
    """An Orthanc with 50 studies of 40 patients, a report document each; and all identities in it."""
    folder = tmp_path_factory.mktemp("archive")
    canaries: set[str] = set()
    with orthanc(folder / "orthanc") as pacs:
        for number in range(STUDIES):
            study = identified(folder, number, slices=8, patient=number % 40)
            canaries |= study.canaries
            for dataset in study.datasets:
                buffer = io.BytesIO()
                dataset.save_as(buffer, enforce_file_format=True)
                pacs.store(buffer.getvalue())
        yield pacs, frozenset(canaries)


def test_fifty_studies_of_an_archive_are_linked_and_none_names_anybody(
    filled: tuple[Orthanc, frozenset[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pacs, canaries = filled
    monkeypatch.setattr(archive, "PAGE", 7)  # so that there are several pages
    arguments = ["cohort", "--dicomweb", pacs.dicomweb, "--out", str(tmp_path / "out"), "-w", "2", "--headers",
                 "--salt-file", str(tmp_path / "salt")]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    cohort = read_cohort(tmp_path / "out")
    assert len(cohort.rows) == STUDIES
    assert cohort.facts["reports"]["from_document"] == STUDIES and cohort.facts["reports"]["studies_without"] == 0
    assert all(set(row.sentences) >= EXPECTED for row in cohort.rows)
    assert cohort.facts["patients"] == 40
    assert len(list((tmp_path / "out" / "headers").iterdir())) == STUDIES
    assert leaks(tmp_path / "out", canaries, done.output) == set()


def test_a_dry_run_of_an_archive_writes_nothing(filled: tuple[Orthanc, frozenset[str]], tmp_path: Path) -> None:
    pacs, canaries = filled
    arguments = ["cohort", "--dicomweb", pacs.dicomweb, "--out", str(tmp_path / "out"), "--dry-run"]
    done = CliRunner().invoke(app, [*arguments, "--match", "PatientID=PZ-771-4092307"])
    assert done.exit_code == 0, done.output
    assert "2" in done.output.split("studies in the dicomweb")[1].split("\n")[0]
    assert not (tmp_path / "out").exists()
    assert not any(canary in done.output for canary in canaries)


class _Closed(BaseHTTPRequestHandler):
    """A server that lets nobody in and remembers who knocked."""

    asked: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.headers["Authorization"])
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_an_archive_that_refuses_is_named_without_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Closed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HLIP_DICOMWEB_TOKEN", "very-secret")
    url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    done = CliRunner().invoke(app, ["cohort", "--dicomweb", url, "--out", str(tmp_path / "out")])
    server.shutdown()
    server.server_close()
    assert done.exit_code == 1
    assert "401" in done.output and "very-secret" not in done.output
    assert _Closed.asked[0] == "Bearer very-secret"
    assert not (tmp_path / "out").exists()


def test_an_archive_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["cohort", "--dicomweb", "http://127.0.0.1:9/x", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "no answer from the archive" in done.output
