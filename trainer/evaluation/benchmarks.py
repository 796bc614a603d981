"""What is evaluated: studies of which the truth is known, and the classes that they are asked about.

The classes of the public sets, and the figures that others published on them, stand in `benchmarks.toml`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hlip_core.findings import FindingsTable
from hlip_core.preprocessing import Preprocessing
from hlip_core.volume import PreparedScan
from trainer.manifest import StudyRow

__all__ = ["TABLE", "Benchmark", "BenchmarkClass", "Case", "Data", "of_findings"]

TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("benchmarks.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One study. `truth` by class, what is not known is left out; `row` is that of a cohort.

    `load` gives its prepared scans in the order in which the encoder sees them. It raises Refused when no series is
    usable, and DamagedScan.
    """

    study: str
    truth: Mapping[str, bool]
    load: Callable[[Preprocessing], Sequence[PreparedScan]]
    row: StudyRow | None = None


@dataclass(frozen=True)
class Data:
    """The studies of a benchmark as they lie on this disk, and what a reader of the figures should know of them."""

    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BenchmarkClass:
    """A class: its name, its column in the benchmark's table, the finding that answers it, words where none does."""

    name: str
    column: str
    label: str | None = None
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Classes, means of classes by name (the first is the benchmark's own), and figures of others."""

    title: str
    truth: str
    classes: tuple[BenchmarkClass, ...]
    macros: Mapping[str, tuple[str, ...]]
    published: tuple[Mapping[str, str], ...] = ()

    @classmethod
    def named(cls, name: str) -> Benchmark:
        """A row of the table."""
        row = TABLE[name]
        classes = tuple(
            BenchmarkClass(**{**values, "prompts": tuple(values.get("prompts", ()))}) for values in row["classes"]
        )
        return cls(
            title=row["title"],
            truth=row["truth"],
            classes=classes,
            macros={title: tuple(names) for title, names in row["macros"].items()},
            published=tuple(row["published"]),
        )


def of_findings(table: FindingsTable, data: Data) -> Benchmark:
    """A cohort as a benchmark: its classes are the findings of the bundle that any study is labelled with."""
    known = {label for case in data.cases for label in case.truth}
    labels = tuple(label for label in table.labels if label in known)
    return Benchmark(
        title="cohort",
        truth="the labels of the cohort",
        classes=tuple(BenchmarkClass(name=label, column=label, label=label) for label in labels),
        macros={"all findings": labels},
    )
