"""How far a scan is, and what one would take: tables, JSON, CSV. Nothing here names a patient."""

import csv
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from plugin.archive.listing import Listing
from plugin.archive.pace import Pace
from plugin.archive.scan import Patient, open_source
from plugin.archive.selection import Selection
from plugin.bootstrap import Plugin
from plugin.index import archive as index
from plugin.lifecycle import FetchState
from plugin.sections_archive import ArchiveSettings

INSTANCE_BYTES = 530_000
"""Of a CT slice, 512 x 512 pixels of two bytes and its header, where the PACS does not compress."""


def read(plugin: Plugin, name: str | None) -> dict[str, Any]:
    """A scan, JSON-ready. Raises ValueError where there is none."""
    scan = index.find_scan(plugin.database, name)
    studies = index.rows(plugin.database, scan.id)
    counts = Counter((row["state"], row["reason"] if row["state"] in ENDS_WITH_REASON else None) for row in studies)
    troubles: Counter[str] = Counter()
    for row in studies:
        troubles.update(row["troubles"])
    return {
        **vars(scan),
        "studies_total": len(studies),
        "by_state": dict(Counter(row["state"] for row in studies)),
        "by_reason": [
            {"state": state, "reason": reason, "studies": count}
            for (state, reason), count in sorted(counts.items(), key=str)
        ],
        "troubles": dict(troubles),
        "instances": sum(row["instances"] for row in studies),
        "megabytes": sum(row["megabytes"] for row in studies),
        "studies": studies,
    }


ENDS_WITH_REASON = frozenset({FetchState.REFUSED, FetchState.SKIPPED, FetchState.GONE, FetchState.FAILED})


def write_csv(found: dict[str, Any], path: Path) -> None:
    """A row for each study."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, index.COLUMNS)
        rows.writeheader()
        for study in found["studies"]:
            troubles = " ".join(f"{name}:{count}" for name, count in sorted(study["troubles"].items()))
            rows.writerow({**study, "troubles": troubles})


def page(found: dict[str, Any]) -> Group:
    """For the terminal."""
    table = Table("studies", "state", "reason", title=f"{found['name']}: {found['state']}")
    order = {state: place for place, state in enumerate(FetchState)}
    for row in sorted(found["by_reason"], key=lambda row: (order[row["state"]], -row["studies"])):
        table.add_row(str(row["studies"]), row["state"], escape(row["reason"] or ""))
    table.add_section()
    table.add_row(str(found["studies_total"]), "all", "" if found["listed_at"] else "not all are found yet")
    lines = [Text(f"{found['instances']} instances, {decimal(int(found['megabytes'] * 1e6))} fetched")]
    for title, counts in (("finding them", found["listed"]), ("on the way", found["troubles"])):
        if counts:
            lines.append(Text(f"{title}: {', '.join(f'{count} {name}' for name, count in sorted(counts.items()))}"))
    return Group(table, *lines, *_missing(found["listed"]))


def estimate(
    plugin: Plugin, rules: ArchiveSettings, selection: Selection, *, console: Console, stop: threading.Event
) -> Group:
    """What a scan would find, and how long it would take by what was measured here so far.

    Raises ValueError where the PACS cannot be asked.
    """
    pace = Pace(hours=rules.not_during, studies_per_hour=0, bytes_per_second=0, stop=stop)
    studies: dict[str, int] = {}
    with open_source(plugin, rules) as source, console.status("asking the PACS") as status:
        patient = Patient(source, rules, pace)
        listing = Listing(source, selection, page=rules.page, ask=patient, check=patient.once)
        for batch in listing:
            studies.update((study.study_instance_uid, study.num_instances) for study in batch)
            status.update(f"asking the PACS: {len(studies)} studies")
    present = index.present(plugin.database, studies)
    new, instances = len(studies) - present, sum(studies.values())
    table = Table(show_header=False, title="What a scan would find")
    table.add_row("studies", str(len(studies)))
    table.add_row("of them in the index already", str(present))
    if instances:
        share = new / max(1, len(studies))
        table.add_row("instances, of all their series", str(instances))
        table.add_row("to fetch, at most about", decimal(int(instances * share * INSTANCE_BYTES)))
    for row in _times(plugin, rules, new):
        table.add_row(*row)
    return Group(table, *_missing(listing.facts), Text("Nothing was fetched or written."))


def _missing(facts: Mapping[str, int]) -> list[Text]:
    """What finding the studies left open."""
    if not (days := facts.get("incomplete_days")):
        return []
    return [Text(f"Not all studies are found: of {days} days the PACS gives only a part. Name them with --studies.")]


def _times(plugin: Plugin, rules: ArchiveSettings, studies: int) -> list[tuple[str, str]]:
    """How long each step would take for so many studies, and the longest of them all."""
    database = plugin.database
    seconds = {
        "to fetch them": (index.usual_fetch_seconds(database), rules.parallel),
        "to prepare a series of each": (index.usual_seconds(database, "prepared"), 1),
        "to analyse them": (index.usual_seconds(database, "analysed"), 1),
    }
    hours = {what: studies * each / at_once / 3600 for what, (each, at_once) in seconds.items() if each is not None}
    if rules.studies_per_hour:
        hours["as many an hour as are allowed"] = studies / rules.studies_per_hour
    if not hours:
        return [("time", "unknown: nothing was analysed here yet")]
    rows = [(f"hours {what}", f"{value:.1f}") for what, value in hours.items()]
    forbidden = f", without the hours {', '.join(rules.not_during)}" if rules.not_during else ""
    return [*rows, (f"hours, at least{forbidden}", f"{max(hours.values()):.1f}")]
