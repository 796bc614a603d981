"""The fault bench itself: its gates and senders, books that notice what is wrong, and two rounds of it."""

import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import requests
from faults import material
from faults.books import Books, check
from faults.gate import CUTS, TRICKS, CuttingGate, HttpGate
from faults.journal import Journal, markdown, plan, summaries, table
from faults.kinds import BY_NAME, KINDS
from faults.nursery import Born
from faults.rounds import Record, Round, run_round
from faults.senders import Ledger, Sending, multipart, send_all
from faults.servers import Orthanc
from faults.world import World
from sqlalchemy import update

from peers import needs
from plugin.bootstrap import Plugin
from plugin.index.tables import Series
from plugin.listener import listening
from plugin.settings import ListenerSettings, Settings
from plugin.spool import Spool, dataset_digest
from plugin.web.app import create_app
from plugin.web.server import serving

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> material.Study:
    return material.studies(tmp_path_factory.mktemp("phantoms"))[0]


# ---- gates and senders -------------------------------------------------------------------------------------------


class Archive(BaseHTTPRequestHandler):
    """Stores every POST, and says "stored"."""

    stored: ClassVar[Counter[bytes]] = Counter()

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        if len(body := self.rfile.read(length)) < length:
            return
        self.stored[body] += 1
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"stored")

    def log_message(self, *_: object) -> None:
        """Nobody asked."""


@pytest.fixture
def archive() -> Iterator[HTTPServer]:
    Archive.stored = Counter()
    with HTTPServer(("127.0.0.1", 0), Archive) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def answer(gate: HttpGate, body: bytes) -> tuple[int, bytes] | str:
    """What a POST through a gate comes to: status and content, or "broken"."""
    with closing(HTTPConnection("127.0.0.1", gate.port, timeout=10)) as connection:
        try:
            connection.request("POST", "/dicom-web/studies", body)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, HTTPException):
            return "broken"


@pytest.mark.parametrize(
    ("trick", "said", "is_stored"),
    [
        ("500", (500, b""), False),
        ("503", (503, b"busy"), False),
        ("stored, but 500", (500, b""), True),
        ("stored, but no answer", "broken", True),
        ("half of the request", "broken", False),
        ("half of the answer", "broken", True),
        ("an empty answer", (200, b""), False),
    ],
)
def test_a_trick_is_played_once(archive: HTTPServer, trick: str, said: object, is_stored: bool) -> None:
    assert trick in TRICKS
    with closing(HttpGate(archive.server_address[1])) as gate:
        gate.tricks.append(trick)
        assert answer(gate, b"first") == said
        assert answer(gate, b"second") == (200, b"stored")
    assert (Archive.stored[b"first"], Archive.stored[b"second"]) == (is_stored, 1)


def test_a_closed_gate_refuses_and_comes_back_at_the_same_port(archive: HTTPServer) -> None:
    with closing(HttpGate(archive.server_address[1])) as gate:
        gate.close()
        assert answer(gate, b"x") == "broken"
        gate.open()
        assert answer(gate, b"x") == (200, b"stored")


@pytest.mark.parametrize("how", CUTS)
def test_a_sender_that_is_cut_off_sends_the_rest_and_keeps_account(
    tmp_path: Path, study: material.Study, how: str
) -> None:
    needs("dcmsend", "dcmtk")
    spool, ledger = Spool(tmp_path / "data", min_free_gigabytes=0), Ledger()
    with (
        listening(ListenerSettings(port=0), spool) as listener,
        closing(CuttingGate(listener.port)) as gate,
    ):
        gate.cuts.append((100_000, how))
        send_all(Sending(study.items, associations=1), gate.port, ledger, tmp_path / "log", random.Random(1),
                 threading.Event())  # fmt: skip
        assert gate.made == [how]
    assert set(ledger.acknowledged) == set(study.items)
    assert ledger.sent.total() > len(study.items)
    assert {dataset_digest(path) for path in spool} == {item.digest for item in study.items}
    assert not list(spool.incoming.glob(".*"))


def test_a_stow_sender_counts_what_the_response_lists(tmp_path: Path, study: material.Study) -> None:
    settings = Settings(spool={"folder": tmp_path / "data", "min_free_gigabytes": 0}, web={"port": 0})
    ledger = Ledger()
    with serving(create_app(Plugin(settings)), settings.web) as server:
        send_all(Sending(study.items, "stow", 2), server.port, ledger, tmp_path / "log", random.Random(1),
                 threading.Event())  # fmt: skip
    assert ledger.acknowledged == Counter(study.items)
    assert multipart([b"x"]).count(b"--hlip-faults") == 2


def test_altered_instances_differ_in_content_only(tmp_path: Path, study: material.Study) -> None:
    for item, other in zip(study.items, material.altered(study.items, tmp_path), strict=True):
        assert (item.sop_uid, item.study_uid) == (other.sop_uid, other.study_uid)
        assert item.digest != other.digest


def test_a_process_of_the_nursery_is_waited_for_and_killed_by_its_number() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        born = Born(process.pid)
        assert born.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            born.wait(0.01)
        born.kill()
        assert born.wait(10) == 0
        born.kill()
    assert Born(process.pid).poll() == 0


# ---- the journal -------------------------------------------------------------------------------------------------


def record(kind: str, number: int, **books: int) -> Record:
    return Record(kind, number, 1, "SQLite, embedded broker", [], Books(**books), 2.0, 9.0, {})


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    journal, kinds = Journal(tmp_path), [BY_NAME[name] for name in ("nothing", "kill-web", "pacs-down")]
    assert [kind.name for kind, _ in plan(kinds, 4, [])] == ["nothing", "kill-web", "pacs-down", "nothing"]
    journal.add(record("nothing", 0))
    journal.add(record("pacs-down", 0))
    with journal.path.open("a") as file:
        file.write('{"kind": "kill-web", "num')  # killed while it wrote
    assert [(kind.name, number) for kind, number in plan(kinds, 4, journal.rows(1))] == [
        ("kill-web", 0),
        ("nothing", 1),
    ]
    assert len(plan(kinds, 4, journal.rows(2))) == 4


def test_the_page_says_what_was_found_and_what_was_not_run(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add(record("nothing", 0, sent=70, acknowledged=70))
    bad = record("kill-web", 0, sent=70, acknowledged=70)
    bad.books.wrong("lost", 3, "acknowledged, not on the disk")
    journal.add(bad)
    page = markdown(journal.rows(), {"clock-step": "there is no clock"}, None)
    assert "| kill-web | 1 | 3 | 0 | 0 | 0 | 0 | 2.0 | 2.0 |" in page
    assert "- Failed: kill-web, round 0 of seed 1: 3 acknowledged, not on the disk" in page
    assert "Not run: clock-step, since there is no clock." in page
    assert "2 rounds" in page and "140 instances sent" in page
    assert table(journal.rows()).row_count == len(summaries(journal.rows())) == 3


def test_a_round_that_failed_is_run_again_and_both_times_are_on_the_page(tmp_path: Path) -> None:
    journal, kind = Journal(tmp_path), BY_NAME["kill-web"]
    bad = record("kill-web", 0, sent=70, acknowledged=70)
    bad.books.wrong("lost", 3, "acknowledged, not on the disk")
    journal.add(bad)
    assert plan([kind], 1, journal.rows(1)) == [(kind, 0)]
    journal.add(record("kill-web", 0, sent=70, acknowledged=70))
    assert plan([kind], 1, journal.rows(1)) == []
    page = markdown(journal.rows(), {}, None)
    assert "| kill-web | 1 | 0 | 0 | 0 | 0 | 0 | 2.0 | 2.0 |" in page
    assert "- Failed at first, balanced when run again: kill-web, round 0 of seed 1: 3 acknowledged" in page


def test_every_kind_says_what_it_does() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert all(kind.says and kind.stacks for kind in KINDS)


# ---- rounds ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if reason := BY_NAME["nothing"].impossible():
        pytest.skip(reason)
    world = World(tmp_path_factory.mktemp("world"), patience=4)
    yield world
    world.close()


def test_half_of_a_delivery_costs_nothing(world: World) -> None:
    found = run_round(world, BY_NAME["pacs-halves"], 0, seed=5)
    assert found.ok, found.books.problems
    assert found.books.sent == found.books.acknowledged > 0
    assert found.fault and not any((world.folder / "rounds").iterdir())


class Tampered(Round):
    """A round whose books are checked again after each of several wrongs."""

    def _check(self, quiet: bool) -> Books:
        books = super()._check(quiet)
        if books.balance:
            self.stack.kill()
            for what, wrong in WRONGS:
                undo = wrong(self)
                found = self._again()
                assert getattr(found, what) > 0, (wrong, found)
                undo()
                assert self._again().balance, wrong
        return books

    def _again(self) -> Books:
        return check(self.ledger, self.studies, self.database, self.spool, self.world.orthanc)

    def an_instance(self) -> Path:
        return next(self.spool.instances.rglob("*.dcm"))

    def without_an_instance(self):  # type: ignore[no-untyped-def]
        path = self.an_instance()
        aside = path.rename(self.folder / "aside")

        def undo() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)  # the sweep took it, if it was the last one there
            aside.rename(path)

        return undo

    def with_another_content(self):  # type: ignore[no-untyped-def]
        path = self.an_instance()
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return lambda: path.write_bytes(content)

    def without_a_delivery(self):  # type: ignore[no-untyped-def]
        pacs = self.world.orthanc
        _, _, content = next(pacs.objects())
        (instance, *_) = requests.get(url(pacs, "/instances"), timeout=30).json()
        content = requests.get(url(pacs, f"/instances/{instance}/file"), timeout=30).content
        requests.delete(url(pacs, f"/instances/{instance}"), timeout=30).raise_for_status()
        return lambda: requests.post(url(pacs, "/instances"), data=content, timeout=30).raise_for_status()

    def with_a_stranger(self):  # type: ignore[no-untyped-def]
        pacs = self.world.orthanc
        content = self.an_instance().read_bytes()
        stored = requests.post(url(pacs, "/instances"), data=content, timeout=30).json()["ID"]
        return lambda: requests.delete(url(pacs, f"/instances/{stored}"), timeout=30).raise_for_status()

    def with_a_lease(self):  # type: ignore[no-untyped-def]
        def leased(owner: str | None) -> None:
            with self.database.write() as session:
                session.execute(update(Series).values(lease_owner=owner))

        leased("a dead worker")
        return lambda: leased(None)

    def with_debris(self):  # type: ignore[no-untyped-def]
        (self.spool.incoming / ".half.dcm.part").write_bytes(b"DICM")
        return lambda: None


WRONGS = (
    ("lost", Tampered.without_an_instance),
    ("lost", Tampered.with_another_content),
    ("unreported", Tampered.without_a_delivery),
    ("duplicated", Tampered.with_a_stranger),
    ("in_progress", Tampered.with_a_lease),
    ("debris", Tampered.with_debris),
)
"""What of the books must notice, and what is done."""


def url(pacs: Orthanc, path: str) -> str:
    return f"http://127.0.0.1:{pacs.port}{path}"


def test_everything_killed_at_once_costs_nothing_and_the_books_would_notice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faults.rounds.Round", Tampered)
    found = run_round(world, BY_NAME["kill-everything"], 0, seed=5)
    assert found.ok, found.books.problems
    assert found.fault == ["killed everything"]


@pytest.mark.full
@pytest.mark.timeout(900)
def test_five_minutes_of_mixed_load_balance_and_leak_nothing(tmp_path: Path) -> None:
    if reason := BY_NAME["nothing"].impossible():
        pytest.skip(reason)
    command = [sys.executable, DEPLOY / "soak.py", "--minutes", "5", "--warm-up", "2", "--limit", "1.2"]
    done = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "soak.json").read_text())
    assert found["problems"] == []
    assert found["processes"].keys() >= {"supervisor", "listen", "schedule", "prepare", "analyse", "deliver", "web"}
    assert found["studies"] > 0 and found["latency_seconds"]["median"] > 0
