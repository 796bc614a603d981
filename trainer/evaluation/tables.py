"""The document of an evaluation as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

__all__ = ["tables"]

WARNING = (
    "Sets, class lists and protocols differ between these rows and yours: they are no ranking. "
    "AUC in percent, as others published it."
)
Measure = Sequence[float | None] | None


def tables(document: dict[str, Any]) -> Iterator[RenderableType]:
    """Everything that the document holds, in the order in which a person reads it."""
    yield from _head(document)
    yield _classes(document)
    yield from (f"Not scored: {name} ({reason})" for name, reason in document["skipped"].items())
    if document["retrieval"]:
        yield _retrieval(document["retrieval"])
    yield from _phantoms(document.get("phantoms", {}))
    if document["published"]:
        yield _published(document["published"])


def _head(document: dict[str, Any]) -> Iterator[str]:
    bundle, benchmark = document["bundle"], document["benchmark"]
    yield f"[bold]{bundle['name']} {bundle['version']}[/bold] ({bundle['status']}) on {benchmark['title']}"
    yield f"[yellow]{document['notice']}[/yellow]"
    yield f"Truth: {benchmark['truth']}. {'; '.join(benchmark['notes'])}."
    if document["refused"]:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(document["refused"].items()))
        yield f"Left out, since no series was usable: {counts}."


def _classes(document: dict[str, Any]) -> Table:
    table = Table(title=f"Zero-shot, {document['studies']} studies", caption=document["intervals"])
    for column in ("class", "positive", "AUC", "threshold", "sensitivity", "specificity"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for name, row in document["classes"].items():
        at = row.get("at_threshold", {})
        limit = f"{at['threshold']:.3f} ({at['on']})" if at else ""
        rates = [measure(at.get(rate)) for rate in ("sensitivity", "specificity")]
        auc = measure(row["auc"]) if row["auc"] else "needs both sides"
        table.add_row(name, f"{row['positives']}/{row['studies']}", auc, limit, *rates)
    table.add_section()
    for title, row in document["macro"].items():
        short = f", {len(row['missing'])} missing" if row["missing"] else ""
        name = f"macro: {title} ({len(row['classes'])}{short})"
        table.add_row(name, "", measure(row["auc"]), "", "", "", style="bold")
    return table


def _retrieval(found: dict[str, Any]) -> Table:
    title = f"Retrieval among {found['studies']} studies ({found['different_reports']} different reports)"
    table = Table("recall at", *map(str, found["chance"]), title=title)
    for name, key in (("report of an image", "image_to_report"), ("image of a report", "report_to_image")):
        table.add_row(name, *(f"{value:.3f}" for value in found[key].values()))
    table.add_row("by chance", *(f"{value:.3f}" for value in found["chance"].values()), style="dim")
    return table


def _phantoms(found: dict[str, Any]) -> Iterator[RenderableType]:
    if not found:
        return
    yield _graded(found["conspicuity"], found.get("paraphrases"), found.get("histogram"))
    if leaked := found.get("paraphrases", {}).get("in_reports"):
        yield f"[red]Phrases kept back for evaluation that reports hold after all: {', '.join(leaked)}[/red]"
    if denial := found.get("denial"):
        others = f"; all without a bleed above bleeds: {measure(denial['others'])}" if "others" in denial else ""
        yield f'"{denial["texts"][0]}" ranks normals above bleeds: AUC {measure(denial["normals"])}{others}'
    if pointing := found.get("pointing"):
        yield _pointing(pointing)


def _graded(graded: dict[str, Any], told: dict[str, Any] | None, histogram: dict[str, Any] | None) -> Table:
    """A row a finding: AUC by thirds of conspicuity, in other words, and of histograms, as far as they are there."""
    columns = {f"{name} third": _by_third(graded, name) for name in ("lowest", "middle", "highest")}
    if told is not None:
        columns["in other words"] = {**told["findings"], "macro": told["macro"]}
    if histogram is not None:
        values = {**histogram["findings"], "macro": histogram["macro"]}
        columns["histograms"] = {name: [value, None, None] for name, value in values.items()}
    table = Table("finding", *columns, title="Phantoms: AUC by conspicuity, and in words kept back for evaluation")
    names = dict.fromkeys(name for column in columns.values() for name in column if name != "macro")
    for name in (*names, "macro"):
        cells = (measure(column.get(name)) for column in columns.values())
        table.add_row(name, *cells, style="bold" if name == "macro" else "")
    return table


def _by_third(graded: dict[str, Any], name: str) -> dict[str, Measure]:
    of_findings = {label: row[name]["auc"] for label, row in graded["findings"].items() if name in row}
    return {**of_findings, "macro": graded["macro"].get(name)}


def _pointing(found: dict[str, Any]) -> Table:
    title = f"Phantoms: the point of relevance lies within {found['within_mm']:g} mm of the lesion"
    table = Table("finding", "true positives", "share", "a random point", "threshold", title=title)
    for label, row in found["findings"].items():
        limit = found["thresholds"][label]
        table.add_row(label, str(row["true_positives"]), measure(row["share"]), f"{row['chance']:.3f}", limit)
    chance = "" if found["chance"] is None else f"{found['chance']:.3f}"
    table.add_row("all", str(found["true_positives"]), measure(found["share"]), chance, "", style="bold")
    if found["not_looked_at"]:
        table.caption = f"{found['not_looked_at']} true positives have no phantom in the folder"
    return table


def _published(rows: Sequence[dict[str, str]]) -> Table:
    table = Table("model", "protocol", "macro AUC", "classes", title="Published by others", caption=WARNING)
    for row in rows:
        table.add_row(row["model"], row["protocol"], row["auc"], row["classes"])
    return table


def measure(numbers: Measure) -> str:
    """A value with its interval; empty for none."""
    if numbers is None or numbers[0] is None:
        return ""
    value, low, high = numbers
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f}-{high:.3f})"
