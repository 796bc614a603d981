"""A PACS that speaks DIMSE, and fails in the middle of it: studies are fetched whole all the same, or end with why."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    SecondaryCaptureImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from rich.console import Console

from archive_site import ALL, Site, studies, study
from peers import free_port
from plugin.archive import report as reports
from plugin.archive import scan as scans
from plugin.archive.dimse import _storage_contexts, identifier
from plugin.archive.listing import Listing
from plugin.archive.pace import Pace
from plugin.archive.scan import Wishes
from plugin.archive.selection import Selection
from plugin.archive.source import Query
from plugin.index import archive as index

FAILED_FIND, OUT_OF_RESOURCES, UNABLE, CANCELLED = 0xC001, 0xA700, 0xA702, 0xFE00
CSA = "1.3.12.2.1107.5.9.1"
"""Siemens CSA Non-Image: of a modality, and no image."""


@dataclass
class Pacs:
    """What it holds. `find` and `move`: failures still to come; `loses`: instances that C-MOVE of a series lacks.

    `cap`: the most studies of an answer, and whether it `says_so` of a cut one; `refuses_above` so many it gives none.
    """

    datasets: list[Dataset]
    move_port: int
    find: dict[str, list[int]] = field(default_factory=dict)
    move: list[int] = field(default_factory=list)
    cap: int = 1000
    says_so: bool = False
    refuses_above: int = 1000
    loses: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)

    def matches(self, asked: Dataset) -> list[Dataset]:
        keys = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        first, _, last = str(asked.get("StudyDate", "")).partition("-")
        return [
            dataset
            for dataset in self.datasets
            if all(not asked.get(key) or asked.get(key) == dataset.get(key) for key in keys)
            and (not first or first <= dataset.StudyDate <= (last or first))
        ]

    def on_find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        level = event.identifier.QueryRetrieveLevel
        self.asked[f"find {level}"] += 1
        failures = self.find.get(level, [])
        failure = failures.pop(0) if failures else 0
        if failure == FAILED_FIND:
            yield failure, None
            return
        if level == "STUDY" and len(self.matches(event.identifier)) > self.refuses_above:
            yield OUT_OF_RESOURCES, None
            return
        key = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}[level]
        found = {dataset.get(key): dataset for dataset in self.matches(event.identifier)}
        cap = self.cap if level == "STUDY" and len(found) > self.cap else None
        for uid, dataset in list(found.items())[: 1 if failure else cap]:
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            for keyword in ("StudyDate", "PatientID", "Modality", "SeriesDescription", "SOPClassUID"):
                setattr(answer, keyword, dataset.get(keyword, ""))
            setattr(answer, key, uid)
            yield 0xFF00, answer
        if failure or (cap and self.says_so):
            yield failure or CANCELLED, None

    def on_move(self, event: Event) -> Iterator[Any]:
        level = event.identifier.QueryRetrieveLevel
        self.asked[f"move {level}"] += 1
        found = self.matches(event.identifier)
        contexts = [build_context(CTImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])]
        yield "127.0.0.1", self.move_port, {"contexts": contexts}
        yield len(found)
        if self.move:
            yield self.move.pop(0), None
            return
        for dataset in found:
            if level == "SERIES" and dataset.SOPInstanceUID in self.loses:
                broken = Dataset()  # of a class that nobody has agreed on: the sub-operation fails
                broken.SOPClassUID, broken.SOPInstanceUID = "1.2.3.4", dataset.SOPInstanceUID
                yield 0xFF00, broken
            else:
                yield 0xFF00, dataset

    def on_get(self, event: Event) -> Iterator[Any]:
        """Fails as a whole where a class was not negotiated, as some do."""
        self.asked[f"get {event.identifier.QueryRetrieveLevel}"] += 1
        found = self.matches(event.identifier)
        offered = {context.abstract_syntax for context in event.assoc.accepted_contexts}
        yield len(found)
        if {dataset.SOPClassUID for dataset in found} - offered:
            yield UNABLE, None
            return
        for dataset in found:
            yield 0xFF00, dataset


@contextmanager
def site(
    folder: Path, datasets: list[Dataset], *, retrieve: str = "move", **behaviour: Any
) -> Iterator[tuple[Site, Pacs]]:
    """A PACS by C-FIND, C-MOVE and C-GET, and a site that scans it."""
    pacs = Pacs(datasets, free_port(), **behaviour)
    ae = AE("PACS")
    ae.supported_contexts = [
        build_context(StudyRootQueryRetrieveInformationModelFind),
        build_context(StudyRootQueryRetrieveInformationModelMove),
        build_context(StudyRootQueryRetrieveInformationModelGet),
    ]
    for sop_class in (CTImageStorage, SecondaryCaptureImageStorage, CSA):
        ae.add_supported_context(sop_class, scp_role=True, scu_role=False)
    handlers = [(evt.EVT_C_FIND, pacs.on_find), (evt.EVT_C_MOVE, pacs.on_move), (evt.EVT_C_GET, pacs.on_get)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    rules = {"host": "127.0.0.1", "port": server.server_address[1], "ae_title": "PACS", "move_port": pacs.move_port}
    here = Site(folder, "", look_ahead=100, retrieve=retrieve, **rules)
    try:
        yield here, pacs
    finally:
        server.shutdown()
        here.plugin.database.close()


def test_studies_come_by_c_move(tmp_path: Path) -> None:
    with site(tmp_path, studies(3)) as (here, pacs):
        here.scan()
        assert here.reasons() == {("fetched", None): 3} and set(here.fetched().values()) == {3}
        assert pacs.asked["move SERIES"] == 3 and not pacs.asked["move IMAGE"]


def test_a_dose_sheet_and_an_object_of_a_private_class_hold_up_no_study_by_c_get(tmp_path: Path) -> None:
    sheet, private, only = study(0), study(1), study(2)
    for dataset, sop_class in ((sheet[0], SecondaryCaptureImageStorage), (private[0], CSA), *((d, CSA) for d in only)):
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    with site(tmp_path, sheet + private + only, retrieve="get") as (here, pacs):
        here.scan()
        assert here.reasons() == {("fetched", None): 2, ("skipped", "unsupported_class"): 1}
        assert here.fetched() == {sheet[0].StudyInstanceUID: 3, private[0].StudyInstanceUID: 2}
        assert here.report()["troubles"]["unsupported_class"] == 4
        assert (pacs.asked["get SERIES"], pacs.asked["get IMAGE"]) == (3, 2)
    assert len(_storage_contexts()) < 128


def test_what_failed_sub_operations_left_out_is_asked_for_again(tmp_path: Path) -> None:
    lost = {study(0)[1].SOPInstanceUID, study(1)[0].SOPInstanceUID, study(1)[2].SOPInstanceUID}
    with site(tmp_path, studies(3), loses=lost) as (here, pacs):
        here.scan()
        assert here.reasons() == {("fetched", None): 3} and set(here.fetched().values()) == {3}
        troubles = here.report()["troubles"]
        assert (troubles["failed_suboperations"], troubles["asked_again"]) == (3, 3)
        assert pacs.asked["move IMAGE"] == 3


def test_a_query_and_a_retrieval_that_fail_are_tried_again(tmp_path: Path) -> None:
    behaviour = {"find": {"STUDY": [FAILED_FIND], "SERIES": [FAILED_FIND]}, "move": [UNABLE]}
    with site(tmp_path, studies(2), **behaviour) as (here, _):
        here.scan()
        assert here.reasons() == {("fetched", None): 2}
        found = here.report()
        assert found["listed"]["find_c001"] == 1
        assert found["troubles"]["find_c001"] == 1 and found["troubles"]["retrieve_a702"] == 1


def test_an_answer_that_the_pacs_cuts_short_is_asked_for_again_by_halves(tmp_path: Path) -> None:
    with site(tmp_path, studies(4), find={"STUDY": [OUT_OF_RESOURCES]}) as (here, pacs):
        here.scan()
        assert here.reasons() == {("fetched", None): 4}
        assert here.report()["listed"]["cut"] == 1 and pacs.asked["find STUDY"] >= 3


@pytest.mark.parametrize(
    "behaviour", [{"cap": 10}, {"cap": 7, "says_so": True}, {"refuses_above": 7}], ids=["silent", "fe00", "a700"]
)
@pytest.mark.parametrize("dated", [True, False])
def test_a_pacs_that_gives_only_so_many_is_asked_until_it_gives_all(
    tmp_path: Path, behaviour: dict[str, Any], dated: bool
) -> None:
    with site(tmp_path, studies(31), **behaviour) as (here, _):
        assert found_by(here, ALL if dated else Selection()) == (31, 0)


@pytest.mark.parametrize("says_so", [True, False])
def test_a_day_of_which_the_pacs_gives_only_a_part_is_said_to_be_so(tmp_path: Path, says_so: bool) -> None:
    crowded = [dataset for number in range(50, 65) for dataset in study(number, date="20240505")]
    with site(tmp_path, studies(31) + crowded, cap=10, says_so=says_so) as (here, _):
        found, incomplete_days = found_by(here, Selection())
        assert incomplete_days == 1 and 31 + 10 >= found >= 31
        database = here.plugin.database
        scan = scans.open_scan(database, Selection(), Wishes())
        index.set_listed(database, scan.id, {"incomplete_days": 1})
        console = Console(record=True, width=120)
        console.print(reports.page(here.report()))
        assert "of 1 days the PACS gives only a part" in console.export_text()


def test_a_pacs_that_refuses_every_query_is_not_asked_for_every_day(tmp_path: Path) -> None:
    with site(tmp_path, studies(3), refuses_above=-1) as (here, pacs):
        end = here.scan(Selection())
        assert end.exit_code == 3 and "find_cut" in end.why and pacs.asked["find STUDY"] < 40


def found_by(here: Site, selection: Selection) -> tuple[int, int]:
    """How many studies are found, and of how many days only a part."""
    with scans.open_source(here.plugin, here.plugin.settings.archive) as source:
        pace = Pace(hours=(), studies_per_hour=0, bytes_per_second=0, stop=threading.Event())
        patient = scans.Patient(source, here.plugin.settings.archive, pace)
        listing = Listing(source, selection, page=200, ask=patient)
        found = {study.study_instance_uid for batch in listing for study in batch}
        return len(found), listing.facts["incomplete_days"]


def test_an_association_that_is_aborted_once_it_is_accepted_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, aborted = Association.send_c_move, []

    def send_on_a_dead_one(association: Association, *arguments: Any, **options: Any) -> Any:
        if not aborted:
            aborted.append(association.abort())
        return send(association, *arguments, **options)

    monkeypatch.setattr(Association, "send_c_move", send_on_a_dead_one)
    with site(tmp_path, studies(2)) as (here, _):
        here.scan()
        assert here.reasons() == {("fetched", None): 2}
        assert here.report()["troubles"]["broken_association"] >= 1


def test_a_study_that_the_pacs_no_longer_has_is_gone(tmp_path: Path) -> None:
    with site(tmp_path, studies(3)) as (here, pacs):
        forgotten = study(1)[0].StudyInstanceUID
        pacs.datasets = [d for d in pacs.datasets if d.StudyInstanceUID != forgotten]
        chosen = tmp_path / "uids"
        chosen.write_text("\n".join(study(n)[0].StudyInstanceUID for n in range(3)))
        here.scan(type(ALL).from_options(first_date="", last_date="", patients=None, studies=chosen))
        assert here.reasons() == {("fetched", None): 2, ("gone", "gone"): 1}


def test_a_date_range_is_asked_for_as_one() -> None:
    asked = identifier(
        "STUDY", ("StudyInstanceUID",), StudyDate=Query(first_date="20240101", last_date="20240131").dates
    )
    assert (asked.StudyDate, asked.StudyInstanceUID) == ("20240101-20240131", "")
    assert Query(first_date="20240101").dates == "20240101-"
    assert Query(first_date="20240101", last_date="20240101").dates == "20240101"
    with pytest.raises(TypeError):
        Query("20240101")  # type: ignore[misc]
