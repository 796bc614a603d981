"""Reports of scans and of dry runs, and which scan the same or another selection goes on with."""

import threading
from pathlib import Path

import pytest

from archive_site import ALL, site, studies
from plugin.archive import report as reports
from plugin.archive import scan as scans
from plugin.archive.scan import Wishes
from plugin.archive.selection import Selection
from plugin.index import archive as index
from plugin.index import intake
from plugin.settings import Settings


def test_a_report_names_no_patient_and_comes_as_csv_too(tmp_path: Path) -> None:
    with site(tmp_path, studies(2)) as (here, _archive):
        here.scan()
        found = here.report()
        reports.write_csv(found, tmp_path / "r.csv")
        lines = (tmp_path / "r.csv").read_text().splitlines()
        assert len(lines) == 3 and lines[0].startswith("study_instance_uid,state,reason")
        assert "Phantom" not in str(found) and found["instances"] == 6
        assert reports.page(found).renderables


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    from rich.console import Console

    with site(tmp_path, studies(5)) as (here, archive):
        plugin = here.plugin
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            shown = Console(record=True, width=100, file=out)
            rules, stop = plugin.settings.archive, threading.Event()
            shown.print(reports.estimate(plugin, rules, ALL, console=Console(file=err), stop=stop))
        text = shown.export_text()
        assert "15" in text and "nothing was analysed here yet" in text
        assert index.scans(plugin.database) == [] and not here.fetched()
        assert not any("/series" in path for path in archive.asked)


def test_the_same_selection_goes_on_and_another_begins_anew(tmp_path: Path) -> None:
    with site(tmp_path, []) as (here, _archive):
        database = here.plugin.database
        first = scans.open_scan(database, ALL, Wishes())
        assert scans.open_scan(database, ALL, Wishes(store=True)).id == first.id
        assert scans.open_scan(database, Selection(), Wishes()).name == "scan-2"
        with pytest.raises(ValueError, match="take another --name"):
            scans.open_scan(database, Selection(modality="MR"), Wishes(), name="scan-1")
        with pytest.raises(ValueError, match="letters, digits"):
            scans.open_scan(database, ALL, Wishes(), name="a b")


def test_without_an_address_the_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"section \[archive\]"):
        _ = Settings().archive.way
    assert Settings(archive={"host": "h", "ae_title": "A"}).archive.way == "move"
    assert intake.Intake.__dataclass_fields__["scan_id"].default is None
