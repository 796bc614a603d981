"""What `hlip-train cohort` does: find studies and link their reports, make the records, write the cohort."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hlip_core.errors import InputError
from hlip_core.preprocessing import Preprocessing
from trainer.manifest import Split, StudyRow, write_cohort

from .archive import Archive
from .folder import FolderSource
from .gather import close, enter, gather, workers_pool
from .make import Files, Job, Recipe
from .messages import read_messages
from .pseudonyms import Pseudonyms, read_salt
from .reports import Book, Report, read_labels, read_table
from .rows import METHOD, facts_of, rows_of, write_refused
from .study import FoundStudy

__all__ = ["Found", "Made", "Wishes", "find", "make"]

Progress = Callable[[str, int, int], None]
"""Called with (what is done, how many are done, how many there are)."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The options of the command; exactly one of folder, spool and dicomweb is given."""

    out: Path
    preprocessing: Preprocessing
    folder: Path | None = None
    spool: Path | None = None
    dicomweb: str = ""
    match: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    reports: tuple[Path, ...] = ()
    hl7: Path | None = None
    labels: Path | None = None
    all_sections: bool = False
    validation: float = 0.1
    test: float = 0.1
    split: Split | None = None
    headers: bool = False
    salt_file: Path | None = None
    keep_identities: bool = False
    workers: int = 1

    @property
    def archive(self) -> Archive | None:
        """The DICOMweb archive, if studies come from one."""
        if not self.dicomweb:
            return None
        return Archive(
            url=self.dicomweb, modality=self.preprocessing.modality, user=self.user, password=self.password,
            token=self.token, match=self.match,
        )  # fmt: skip

    @property
    def fixed(self) -> dict[str, Any]:
        """What must not change between two starts into one folder."""
        return {
            "preprocessing": self.preprocessing.digest, "keep_identities": self.keep_identities,
            "headers": self.headers, "all_sections": self.all_sections,
        }  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What there is before anything is made: jobs, where they are from, and counts for the facts."""

    kind: str
    jobs: tuple[Job, ...]
    counts: Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """A cohort that was written; open when a series could not be read this time."""

    rows: tuple[StudyRow, ...]
    facts: Mapping[str, Any]
    is_open: bool


# ---- find ----------------------------------------------------------------------------------------------------


def find(wishes: Wishes, progress: Progress) -> Found:
    """All studies of the source, with the reports and labels that belong to them.

    Raises:
        InputError: a table or the folder cannot be used.
        Unavailable: the archive does not answer.
    """
    reports = [report for path in wishes.reports for report in read_table(path)]
    messages, unread = _messages(wishes.hl7)
    book = Book([*reports, *messages])
    labels = read_labels(wishes.labels) if wishes.labels else None
    kind, studies, not_dicom = _studies(wishes, progress)
    jobs = tuple(
        Job(
            study=study,
            reports=book.of(study.study_instance_uid, study.accession_number),
            labels=labels.of(study.study_instance_uid, study.accession_number) if labels else {},
        )
        for study in studies
    )
    counts: dict[str, Any] = {"files_that_are_no_dicom": not_dicom} if not_dicom else {}
    if wishes.reports or wishes.hl7:
        counts["reports_given"] = {**book.counts, "messages_not_read": unread}
    if labels:
        counts["labels_given"] = labels.counts
    return Found(kind, jobs, counts)


def _studies(wishes: Wishes, progress: Progress) -> tuple[str, list[FoundStudy], int]:
    """(kind of source, studies, files that are no DICOM instances)."""
    if archive := wishes.archive:
        return "dicomweb", archive.studies(lambda done, total: progress("asking the archive", done, total)), 0
    folder = wishes.folder or (wishes.spool or Path()) / "instances"
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: --spool is the data folder of `hlip serve`, which holds `instances`")
    source = FolderSource(folder)
    with workers_pool(wishes.workers) as pool:
        studies = source.studies(pool, lambda done, total: progress("reading headers", done, total))
    return "folder" if wishes.folder else "spool", studies, source.unreadable


def _messages(path: Path | None) -> tuple[list[Report], int]:
    reports: list[Report] = []
    unread = 0
    for file in _files(path) if path else ():
        found, failed = read_messages(file)
        reports += found
        unread += failed
    return reports, unread


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from (file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith("."))


# ---- make ----------------------------------------------------------------------------------------------------


def make(wishes: Wishes, found: Found, progress: Progress) -> Made:
    """Prepares what is not prepared yet and writes the cohort.

    Raises:
        InputError: the folder cannot be continued.
    """
    if not found.jobs:
        raise InputError("no study was found; nothing is written")
    with enter(wishes.out, wishes.fixed) as salt:
        recipe = Recipe(
            out=wishes.out,
            preprocessing=wishes.preprocessing,
            pseudonyms=Pseudonyms(read_salt(wishes.salt_file or salt), wishes.keep_identities),
            source=wishes.archive or Files(),
            headers=wishes.headers,
            all_sections=wishes.all_sections,
        )
        done = iter(range(1, len(found.jobs) + 1))
        progress("studies", 0, len(found.jobs))
        records = gather(
            found.jobs, recipe, wishes.workers, lambda record: progress("studies", next(done), len(found.jobs))
        )
        rows = rows_of(records, recipe.pseudonyms, validation=wishes.validation, test=wishes.test, forced=wishes.split)
        is_open = any(record.is_to_retry for record in records)
        facts = {"source": found.kind, "deidentification": _method(wishes), **facts_of(records, rows), **found.counts}
        write_refused(wishes.out, records)
        write_cohort(wishes.out, preprocessing=wishes.preprocessing, rows=rows, facts=facts)
    if wishes.salt_file is None and not is_open:
        close(wishes.out)
    return Made(tuple(rows), facts, is_open)


def _method(wishes: Wishes) -> str:
    if wishes.keep_identities:
        return "none: identities were kept (--keep-identities)"
    return f"{METHOD} The salt was {'kept in a file of the user' if wishes.salt_file else 'destroyed'}."
