"""Storage commitment with a real SCU over real associations: what is promised, what not, when the answer comes."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)
from sqlalchemy import select
from sqlalchemy.exc import ProgrammingError

from peers import free_port, storescu, wait_until
from plugin import dimse
from plugin.commitment import Requests, service
from plugin.commitment_report import Reporter
from plugin.index import retention as index_retention
from plugin.index.database import Database
from plugin.index.tables import Instance, Study
from plugin.listener import Listener, listening
from plugin.scheduler import Scheduler
from plugin.settings import CommitmentSettings, ListenerSettings, Settings
from plugin.spool import Spool
from plugin.tls import TlsError
from road import head_ct
from series import CT


@dataclass
class Modality:
    """An SCU that asks for commitment and takes the answers."""

    port: int
    status: int = 0x0000
    takes_role: bool = True
    answers: list[tuple[int, Dataset]] = field(default_factory=list)

    @contextmanager
    def up(self) -> Iterator[None]:
        ae = AE(ae_title="CT1")
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=not self.takes_role, scp_role=self.takes_role)
        server = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._take)]
        )
        try:
            yield
        finally:
            server.shutdown()  # type: ignore[union-attr]

    def _take(self, event: evt.Event) -> tuple[int, None]:
        assert event.request.AffectedSOPInstanceUID == StorageCommitmentPushModelInstance  # type: ignore[union-attr]
        self.answers.append((event.event_type, event.event_information))
        return self.status, None

    def ask(
        self,
        listener: Listener,
        references: Sequence[tuple[str, str]],
        *,
        ae_title: str = "CT1",
        action: int = 1,
        instance: str = StorageCommitmentPushModelInstance,
        transaction: str | None = None,
    ) -> tuple[int, str]:
        """Status of the N-ACTION, and the TransactionUID."""
        information = Dataset()
        information.TransactionUID = generate_uid() if transaction is None else transaction
        information.ReferencedSOPSequence = [Dataset() for _ in references]
        for item, (sop_class, sop_instance) in zip(information.ReferencedSOPSequence, references, strict=True):
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
        ae = AE(ae_title=ae_title)
        ae.add_requested_context(StorageCommitmentPushModel)
        association = ae.associate("127.0.0.1", listener.port, ae_title="HLIP")
        assert association.is_established
        try:
            status, _ = association.send_n_action(information, action, StorageCommitmentPushModel, instance)
        finally:
            association.release()
        return int(status.Status), information.TransactionUID


@pytest.fixture
def modality() -> Modality:
    return Modality(free_port())


@pytest.fixture
def settings(modality: Modality) -> CommitmentSettings:
    requester = {"ae_title": "CT1", "host": "127.0.0.1", "port": modality.port}
    return CommitmentSettings(enabled=True, requesters=(requester,), first_retry_seconds=0.2, timeout_seconds=5)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "data", min_free_gigabytes=0)


@pytest.fixture
def listener(settings: CommitmentSettings, spool: Spool) -> Iterator[Listener]:
    with listening(ListenerSettings(port=0), spool, services=[service(settings, spool)]) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    is_sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'index.sqlite'}" if is_sqlite else request.getfixturevalue("new_database")
    made = Database(url, lock=tmp_path / "lock")
    made.upgrade()
    yield made
    made.close()


@pytest.fixture
def reporter(settings: CommitmentSettings, spool: Spool, database: Database) -> Reporter:
    return Reporter(settings, spool, database, calling_ae_title="HLIP")


def scheduler(spool: Spool, database: Database) -> Scheduler:
    return Scheduler(Settings(), spool, database, ring=lambda queue: None)


def store(listener: Listener, folder: Path, **kwargs: object) -> list[tuple[str, str]]:
    """Send a series; what to ask commitment for."""
    paths = head_ct(folder, **kwargs)  # type: ignore[arg-type]
    assert storescu(listener.port, paths).returncode == 0
    return [(CT, dcmread(path).SOPInstanceUID) for path in paths]


def references(sequence: Sequence[Dataset]) -> list[tuple[str, str]]:
    return [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in sequence]


def test_what_is_stored_is_committed_and_its_study_stays(
    modality: Modality, listener: Listener, reporter: Reporter, spool: Spool, database: Database, tmp_path: Path
) -> None:
    sent = store(listener, tmp_path)
    scheduler(spool, database).index_arrivals()
    with database.read() as session:
        assert session.scalars(select(Study)).one().committed_at is None
    status, transaction = modality.ask(listener, sent)
    assert status == 0x0000
    with modality.up():
        assert reporter.step() == 1
    ((event_type, information),) = modality.answers
    assert (event_type, information.TransactionUID) == (1, transaction)
    assert references(information.ReferencedSOPSequence) == sent and "FailedSOPSequence" not in information
    assert reporter.step() == 0 and list(Requests(spool)) == []
    with database.read() as session:
        study = session.scalars(select(Study)).one()
        assert study.committed_at is not None
        assert index_retention.KEPT[1].why == "committed to a sender"
        assert session.scalar(select(Study.id).where(index_retention.KEPT[1].holds)) == study.id


def test_each_failure_has_its_reason(
    modality: Modality, listener: Listener, reporter: Reporter, spool: Spool, database: Database, tmp_path: Path
) -> None:
    sent = store(listener, tmp_path)
    store(listener, tmp_path / "other", slices=3, SeriesDescription="other content under the same UIDs")
    scheduler(spool, database).index_arrivals()
    spool.instance_path(*_place(database, sent[4][1])).unlink()
    with database.write() as session:
        session.scalars(select(Instance).where(Instance.sop_instance_uid == sent[5][1])).one().removed_at = 1.0
    asked = [sent[0], ("1.2.840.10008.5.1.4.1.1.4", sent[3][1]), sent[4], sent[5], (CT, "1.2.3.4"), *sent[6:]]
    assert modality.ask(listener, asked)[0] == 0x0000
    with modality.up():
        assert reporter.step() == 1
    ((event_type, information),) = modality.answers
    assert event_type == 2
    assert references(information.ReferencedSOPSequence) == sent[6:]
    assert references(information.FailedSOPSequence) == asked[:5]
    assert [item.FailureReason for item in information.FailedSOPSequence] == [0x0110, 0x0119, 0x0112, 0x0112, 0x0112]


def _place(database: Database, sop_instance_uid: str) -> tuple[str, str, str]:
    with database.read() as session:
        row = session.scalars(select(Instance).where(Instance.sop_instance_uid == sop_instance_uid)).one()
        return row.series.study.study_instance_uid, row.series.series_instance_uid, sop_instance_uid


def test_an_instance_that_is_not_indexed_yet_is_waited_for(
    modality: Modality, listener: Listener, reporter: Reporter, spool: Spool, database: Database, tmp_path: Path
) -> None:
    sent = store(listener, tmp_path)
    modality.ask(listener, sent)
    with modality.up():
        assert reporter.step() == 0 and modality.answers == []
        scheduler(spool, database).index_arrivals()
        assert reporter.step() == 1
    assert modality.answers[0][0] == 1


def test_the_answer_is_tried_again_until_it_is_taken_also_after_a_restart(
    modality: Modality,
    listener: Listener,
    settings: CommitmentSettings,
    spool: Spool,
    database: Database,
    tmp_path: Path,
) -> None:
    sent = store(listener, tmp_path)
    scheduler(spool, database).index_arrivals()
    modality.ask(listener, sent)
    first = Reporter(settings, spool, database, calling_ae_title="HLIP")
    assert first.step() == 0  # nobody there
    assert first._waits and first.step() == 0
    refusing = Modality(modality.port, status=0x0110)
    with refusing.up(), first.in_background():
        wait_until(lambda: refusing.answers, "a second try")
    without_role = Modality(modality.port, takes_role=False)
    again = Reporter(settings, spool, database, calling_ae_title="HLIP")
    with without_role.up():
        assert again.step() == 0 and without_role.answers == []
    with modality.up(), again.in_background():
        wait_until(lambda: list(Requests(spool)) == [], "the answer to be taken")
    assert [event_type for event_type, _ in modality.answers] == [1]


def test_waits_grow_and_end(settings: CommitmentSettings, spool: Spool, database: Database) -> None:
    from plugin.commitment import Request

    brief = settings.model_copy(update={"longest_retry_seconds": 0.5})
    reporter = Reporter(brief, spool, database, calling_ae_title="HLIP")
    request = Request("CT1", "1.2.3", ((CT, "1.2.4"),), time.time_ns())
    waits = []
    for _ in range(3):
        reporter._put_back(request)
        waits.append(reporter._waits[request.name][1])
    assert waits == [0.2, 0.4, 0.5]
    old = Request("CT1", "1.2.5", ((CT, "1.2.4"),), time.time_ns() - int(8 * 86400e9))
    Requests(spool).add(old)
    assert reporter.step() == 0
    assert list(Requests(spool)) == []


def test_only_known_requesters_and_sound_requests_are_taken(
    modality: Modality, listener: Listener, spool: Spool
) -> None:
    some = [(CT, "1.2.3")]
    assert modality.ask(listener, some, action=2)[0] == 0x0123
    assert modality.ask(listener, some, instance="1.2.3")[0] == 0x0112
    assert modality.ask(listener, [])[0] == 0x0115
    assert modality.ask(listener, some, transaction="")[0] == 0x0115
    assert list(Requests(spool)) == []
    assert modality.ask(listener, some, transaction="1.2.3.4")[0] == 0x0000
    assert modality.ask(listener, some, transaction="1.2.3.4")[0] == 0x0000
    assert len(list(Requests(spool))) == 1


def test_others_are_not_offered_it_and_store_as_ever(listener: Listener, spool: Spool, tmp_path: Path) -> None:
    ae = AE(ae_title="EVIL")
    ae.add_requested_context(CT, ExplicitVRLittleEndian)
    ae.add_requested_context(StorageCommitmentPushModel)
    association = ae.associate("127.0.0.1", listener.port, ae_title="HLIP")
    assert [context.abstract_syntax for context in association.accepted_contexts] == [CT]
    assert association.send_c_store(dcmread(head_ct(tmp_path)[0])).Status == 0x0000
    association.release()
    assert list(Requests(spool)) == []


@pytest.mark.filterwarnings("ignore:.*VR UI")
def test_references_that_are_no_uids_are_refused(modality: Modality, listener: Listener, spool: Spool) -> None:
    for bad in ("../../x", "", "1." + "2" * 80):
        assert modality.ask(listener, [(CT, "1.2.3"), (CT, bad)])[0] == 0x0115
    assert list(Requests(spool)) == []


def test_a_full_disk_takes_no_request(modality: Modality, settings: CommitmentSettings, tmp_path: Path) -> None:
    full = Spool(tmp_path / "data", min_free_gigabytes=1e9)
    with listening(ListenerSettings(port=0), full, services=[service(settings, full)]) as running:
        assert modality.ask(running, [(CT, "1.2.3")])[0] == 0x0213


def test_it_is_off_by_default(tmp_path: Path) -> None:
    from plugin.bootstrap import Plugin

    plugin = Plugin(Settings(spool={"folder": tmp_path / "data"}))
    assert not plugin.settings.commitment.enabled and plugin.services == []
    with listening(ListenerSettings(port=0), plugin.spool, services=plugin.services) as running:
        ae = AE(ae_title="CT1")
        ae.add_requested_context(StorageCommitmentPushModel)
        association = ae.associate("127.0.0.1", running.port, ae_title="HLIP")
        assert not association.accepted_contexts
        if association.is_established:
            association.release()
    with plugin.reporting_commitment():
        assert not [thread for thread in threading.enumerate() if thread.name == "commitment"]


def test_a_sender_may_store_and_ask_on_one_association(
    modality: Modality, listener: Listener, reporter: Reporter, spool: Spool, database: Database, tmp_path: Path
) -> None:
    ae = AE(ae_title="CT1")
    ae.add_requested_context(CT, ExplicitVRLittleEndian)
    ae.add_requested_context(StorageCommitmentPushModel)
    role = build_role(StorageCommitmentPushModel, scu_role=True)
    association = ae.associate("127.0.0.1", listener.port, ae_title="HLIP", ext_neg=[role])
    image = dcmread(head_ct(tmp_path)[0])
    assert association.send_c_store(image).Status == 0x0000
    information = Dataset()
    information.TransactionUID = generate_uid()
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, image.SOPInstanceUID
    information.ReferencedSOPSequence = [item]
    status, _ = association.send_n_action(
        information, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    association.release()
    assert status.Status == 0x0000
    scheduler(spool, database).index_arrivals()
    with modality.up():
        assert reporter.step() == 1
    assert modality.answers[0][0] == 1


def test_foreign_files_and_requests_do_not_hold_up_an_answer(
    modality: Modality, listener: Listener, reporter: Reporter, spool: Spool, database: Database, tmp_path: Path
) -> None:
    sent = store(listener, tmp_path)
    scheduler(spool, database).index_arrivals()
    modality.ask(listener, [*sent, (CT, "1.2.3.4")])
    (spool.incoming / "copied by hand.dcm").write_bytes(b"not ours")
    (spool.folder / "commitments" / "0.json").write_text("[]")
    with modality.up():
        assert reporter.step() == 1
    assert [event_type for event_type, _ in modality.answers] == [2]
    assert [path.name for path in (spool.folder / "commitments").iterdir()] == ["0.unreadable"]


@pytest.mark.parametrize(
    "error", [TlsError("the key does not fit"), ProgrammingError("SELECT", {}, Exception()), RuntimeError("aborted")]
)
def test_no_failure_ends_the_answering(
    error: Exception,
    modality: Modality,
    listener: Listener,
    reporter: Reporter,
    spool: Spool,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = store(listener, tmp_path)
    scheduler(spool, database).index_arrivals()
    modality.ask(listener, sent)
    failed = threading.Event()

    def fails(*_: object, **__: object) -> None:
        failed.set()
        raise error

    with modality.up(), reporter.in_background():
        for name in ("judge", "dimse.report_event", "Requests.__iter__"):
            with monkeypatch.context() as broken:
                broken.setattr(f"plugin.commitment_report.{name}", fails)
                assert failed.wait(10)
            failed.clear()
            modality.ask(listener, sent)
        wait_until(lambda: modality.answers, "the answer")


def test_a_peer_that_aborts_before_it_is_told_is_unavailable(
    modality: Modality, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def aborted(*_: object, **__: object) -> None:
        raise RuntimeError("The association with a peer SCP must be established")

    monkeypatch.setattr("pynetdicom.association.Association.send_n_event_report", aborted)
    monkeypatch.setattr("pynetdicom.association.Association.send_c_store", aborted)
    peer = dimse.Peer("127.0.0.1", modality.port, "CT1", timeout_seconds=5)
    uids = {"sop_class_uid": StorageCommitmentPushModel, "sop_instance_uid": StorageCommitmentPushModelInstance}
    with modality.up(), pytest.raises(dimse.PeerUnavailable):
        dimse.report_event(peer, **uids, event_type=1, information=Dataset())  # type: ignore[arg-type]
    archive = AE()
    archive.add_supported_context(CT)
    server = archive.start_server(("127.0.0.1", modality.port), block=False)
    try:
        with pytest.raises(dimse.PeerUnavailable):
            list(dimse.send(head_ct(tmp_path), peer))
    finally:
        server.shutdown()  # type: ignore[union-attr]
