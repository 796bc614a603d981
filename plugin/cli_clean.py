"""The command `hlip clean`: what the rules of retention would remove, or remove it now."""

from collections import Counter
from collections.abc import Iterable, Sequence

import typer
from rich.filesize import decimal
from rich.table import Table

from plugin import orphans
from plugin.bootstrap import Plugin
from plugin.console import console, errors
from plugin.index import retention as index
from plugin.retention import Going, Retention


def acknowledge(plugin: Plugin, studies: Sequence[str]) -> None:
    """Raises typer.Exit where one of them is unknown."""
    unknown = [uid for uid in studies if not index.acknowledge(plugin.database, uid)]
    console.print(f"{len(studies) - len(unknown)} studies acknowledged: the rules now count for them too.")
    if unknown:
        errors.print(f"The index knows no study {', '.join(unknown)}.")
        raise typer.Exit(1)


def clean(plugin: Plugin, *, older_than: float | None, dry_run: bool) -> None:
    """Apply the rules, or show what they come to."""
    audit = plugin.audit
    rules = Retention.from_settings(plugin.settings.retention, plugin.spool, plugin.database, audit=audit)
    if older_than is not None:
        rules = Retention(dict.fromkeys(rules.days, older_than), plugin.spool, plugin.database, audit=audit)
    cap = plugin.settings.settle.association_cap_seconds

    def open_studies() -> frozenset[str]:
        return plugin.spool.open_studies(cap_seconds=cap).studies

    with errors.status("looking" if dry_run else "removing"):
        going = list(rules.plan(open_studies()) if dry_run else rules.run(open_studies))
    console.print(_table(rules, going, dry_run=dry_run))
    for kind, reasons in rules.kept().items():
        for why, count in reasons.items():
            console.print(f"kept: {kind} of {count} studies, {why}", style="yellow")


def _table(rules: Retention, going: Sequence[Going], *, dry_run: bool) -> Table:
    table = Table("what", "older than", "studies", "files", "bytes", title="Would go" if dry_run else "Removed")
    for kind, days in rules.days.items():
        rows = [row for row in going if row.kind == kind]
        _row(table, kind, f"{days:g} days", rows)
    table.add_section()
    _row(table, "all", "", going)
    return table


def _row(table: Table, what: str, rule: str, rows: Sequence[Going]) -> None:
    studies = len({row.study_instance_uid for row in rows})
    table.add_row(what, rule, str(studies), str(sum(row.files for row in rows)), decimal(sum(r.bytes for r in rows)))


def clean_orphans(plugin: Plugin, *, dry_run: bool) -> None:
    """Deal with what no one knows of, or show it."""
    with errors.status("looking through the data folder"):
        found = list(orphans.find(plugin.spool, plugin.database))
    console.print(_orphans_table(found))
    if dry_run:
        return
    for orphan in found:
        orphans.settle(plugin.spool, plugin.database, orphan)


def _orphans_table(found: Iterable[orphans.Orphan]) -> Table:
    count: Counter[tuple[str, str]] = Counter()
    size: Counter[tuple[str, str]] = Counter()
    for orphan in found:
        count[orphan.what, orphan.fate] += 1
        size[orphan.what, orphan.fate] += orphan.bytes
    table = Table("what", "to do", "how many", "bytes", title="Orphans older than a day")
    for (what, fate), many in count.items():
        table.add_row(what, fate, str(many), decimal(size[what, fate]))
    return table
