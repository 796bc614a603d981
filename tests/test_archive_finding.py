"""Finding the studies of an archive: each once however badly a PACS pages, and only those that were chosen."""

from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydicom import Dataset

from archive_site import ALL, STUDIES, site, studies, study
from hostile_pacs import Request, all_of, pacs
from plugin.archive.dicomweb import Dicomweb
from plugin.archive.listing import Ask, Listing
from plugin.archive.selection import Selection, read_uids
from plugin.archive.source import study_of
from plugin.settings import Settings


@pytest.mark.parametrize(
    "behaviour",
    [
        {},
        {"cap": 7},
        {"cap": 10, "knows_dates": False},
        {"repeats": 3},
        {"cap": 10, "drops": True},
        {"cap": 10, "drops": True, "repeats": 2},
        {"cap": 7, "drops": True},
        {"knows_offset": False},
    ],
)
@pytest.mark.parametrize("dated", [True, False])
def test_every_study_is_found_once_however_badly_the_pacs_pages(behaviour: dict[str, Any], dated: bool) -> None:
    with pacs(STUDIES, **behaviour) as archive:
        source = Dicomweb(Settings(archive={"url": archive.url}).archive)
        listing = Listing(source, ALL if dated else Selection(), page=10, ask=ask(source))
        found = Counter(study.study_instance_uid for batch in listing for study in batch)
        assert found == dict.fromkeys(archive.studies, 1)
        assert archive.asked["/dicom-web/studies"] < 40


def test_a_pacs_that_knows_no_offset_and_gives_only_so_many_is_asked_day_by_day() -> None:
    with pacs(STUDIES, cap=10, knows_offset=False) as archive:
        source = Dicomweb(Settings(archive={"url": archive.url}).archive)
        found = [study for batch in Listing(source, ALL, page=200, ask=ask(source)) for study in batch]
        assert {study.study_instance_uid for study in found} == set(archive.studies)


def test_a_pacs_that_allows_small_limits_only_is_scanned_whole(tmp_path: Path) -> None:
    def trick(request: Request) -> None:
        query = parse_qs(urlsplit(request.handler.path).query)
        if int(query.get("limit", ["1"])[0]) > 10:
            request.answer(400)

    with site(tmp_path, STUDIES + study(40, slices=12), rules={"page": 10}, trick=trick) as (here, _archive):
        here.scan(Selection())
        assert here.reasons() == {("fetched", None): 32}
        listed = here.report()["listed"]
        assert listed["not_verified"] == 1 and not listed.get("http_400")


@pytest.mark.parametrize("knows_offset", [True, False])
def test_instances_are_listed_whole_whether_the_pacs_knows_an_offset_or_not(knows_offset: bool) -> None:
    def trick(request: Request) -> None:
        if request.path.endswith("/instances"):
            query = parse_qs(urlsplit(request.handler.path).query)
            limit, offset = int(query["limit"][0]), int(query["offset"][0]) * knows_offset
            rows = [{"00080018": {"vr": "UI", "Value": [d.SOPInstanceUID]}} for d in all_of(request)]
            request.json(rows[offset : offset + limit])

    datasets = study(1, slices=30)
    with pacs(datasets, trick=trick) as archive:
        source = Dicomweb(Settings(archive={"url": archive.url, "page": 10}).archive)
        listed = source.instances(datasets[0].StudyInstanceUID, datasets[0].SeriesInstanceUID)
        assert set(listed) == {dataset.SOPInstanceUID for dataset in datasets}


def ask(source: Dicomweb) -> Ask:
    return lambda query, limit, offset: source.studies(query, limit=limit, offset=offset)


def test_what_the_pacs_returns_beyond_the_question_is_left_out(tmp_path: Path) -> None:
    old = study(90, date="20190505")
    with site(tmp_path, studies(2) + old, knows_dates=False) as (here, _archive):
        here.scan()
        assert len(here.fetched()) == 2 and here.report()["listed"]["not_matching"] >= 1


def test_entries_that_are_none_are_counted_and_hold_nothing_up(tmp_path: Path) -> None:
    def trick(request: Request) -> None:
        if request.path.endswith("/studies"):
            rows = request.pacs.find_studies({})
            request.json([{"0020000D": {"vr": "UI", "Value": ["../../etc"]}}, {"0020000D": 7}, *rows])

    with site(tmp_path, studies(2), trick=trick) as (here, _archive):
        here.scan()
        assert len(here.fetched()) == 2 and here.report()["listed"]["malformed"] >= 2


def test_a_study_whose_modalities_the_pacs_leaves_empty_is_fetched(tmp_path: Path) -> None:
    def trick(request: Request) -> None:
        if request.path.endswith("/studies"):
            request.json([{**row, "00080061": {"vr": "CS"}} for row in request.pacs.find_studies({})])

    with site(tmp_path, studies(2), trick=trick) as (here, _archive):
        here.scan()
        assert here.reasons() == {("fetched", None): 2}
    empty = Dataset()
    empty.StudyInstanceUID, empty.ModalitiesInStudy = "1.2.3", ""
    found = study_of(empty)
    assert found is not None and found.modalities == ()


def test_studies_may_be_named_by_a_file(tmp_path: Path) -> None:
    wanted = [study(n)[0].StudyInstanceUID for n in (1, 3)]
    (tmp_path / "uids.csv").write_text("\ufeffnumber,StudyInstanceUID\n1,{}\n2,{}\n2,{}\n".format(*wanted, wanted[1]))
    chosen = Selection.from_options(first_date="", last_date="", patients=None, studies=tmp_path / "uids.csv")
    with site(tmp_path, studies(5)) as (here, archive):
        here.scan(chosen)
        assert set(here.fetched()) == set(wanted)
        assert not archive.asked["/dicom-web/studies"]
    with pytest.raises(ValueError, match="row 2 holds no"):
        read_uids(["1.2.3", "Smith"])


def test_patients_are_named_by_a_file_and_stand_in_no_index(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("P-77\n")
    chosen = Selection.from_options(first_date="", last_date="", patients=tmp_path / "ids", studies=None)
    datasets = studies(2) + study(7, PatientID="P-77")
    with site(tmp_path, datasets) as (here, _archive):
        here.scan(chosen)
        assert set(here.fetched()) == {study(7)[0].StudyInstanceUID}
        assert b"P-77" not in b"".join(path.read_bytes() for path in (tmp_path / "data").glob("index.sqlite*"))
        assert "P-77" not in str(here.report())
    (tmp_path / "ids").write_text("P-78\n")
    with pytest.raises(ValueError, match="not the list any more"):
        list(chosen.queries())


def test_series_are_chosen_by_what_the_pacs_says_of_them(tmp_path: Path) -> None:
    datasets = study(1, SeriesDescription="Thorax") + study(2, SeriesDescription="Head plain") + study(3, Modality="MR")
    with site(tmp_path, datasets) as (here, _archive):
        here.scan(Selection(series_description="head|skull"))
        assert set(here.fetched()) == {study(2)[0].StudyInstanceUID}
        assert here.reasons() == {("fetched", None): 1, ("skipped", "not_selected"): 2}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"first_date": "31.1.2024"}, "2024-01-31"),
        ({"first_date": "2024-02-01", "last_date": "2024-01-01"}, "later than"),
        ({"body_part": "he(ad"}, "--body-part is no regular expression"),
        ({"studies": Path("/nowhere.csv")}, "no file /nowhere.csv"),
    ],
)
def test_a_selection_that_makes_no_sense_is_explained(wrong: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {"first_date": "", "last_date": "", "patients": None, "studies": None}
    with pytest.raises(ValueError, match=says):
        Selection.from_options(**{**given, **wrong})
