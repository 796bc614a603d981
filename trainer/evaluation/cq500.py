"""CQ500 as published: `reads.csv`, and a folder a study, unpacked anywhere below the folder.

    reads.csv                                               name,Category,R1:ICH,R1:IPH,...,R3:MidlineShift
    CQ500CT0 CQ500CT0/Unknown Study/CT PLAIN THIN/CT000000.dcm

`name` is CQ500-CT-0; mirrors put the folders below others (CQ500-CT-0/, qct01/). A class is present when at least two
of the three readers say so.
"""

from __future__ import annotations

import csv
import re
from functools import partial
from pathlib import Path

from hlip_core.errors import InputError
from hlip_core.preprocessing import Preprocessing
from hlip_core.volume import PreparedScan
from trainer.evaluation.benchmarks import Benchmark, Case, Data
from trainer.evaluation.dicom import prepare_files

__all__ = ["read_cq500_cases", "read_reads"]

READS = "reads.csv"
READERS = ("R1", "R2", "R3")
NAME = re.compile(r"CQ500-?CT-?(\d+)\b", re.IGNORECASE)
DEPTH = 4
"""How many folders a mirror may put above those of the studies."""


def read_cq500_cases(folder: Path, benchmark: Benchmark) -> Data:
    """The studies of `reads.csv` whose folders are there. Raises InputError where there is nothing to evaluate."""
    truth = read_reads(folder, benchmark)
    folders = _folders(folder)
    found = [number for number in sorted(truth) if number in folders]
    if not found:
        raise InputError(f"no folder of a study (such as 'CQ500CT0 CQ500CT0') below {folder}; unpack the zip files")
    cases = tuple(
        Case(study=f"CQ500-CT-{number}", truth=truth[number], load=partial(_load, folders[number])) for number in found
    )
    notes = [f"{len(found)} of the {len(truth)} studies of {READS} are here"]
    if unread := len(set(folders) - set(truth)):
        notes.append(f"{unread} folders have no reads and are left out")
    return Data(cases, tuple(notes))


def read_reads(folder: Path, benchmark: Benchmark) -> dict[int, dict[str, bool]]:
    """What the majority of the three readers says of each study, by its number and by class.

    Raises InputError for a file that is missing, or is not as published.
    """
    path = Path(folder) / READS
    if not path.is_file():
        raise InputError(f"{path} is missing; CQ500 comes with it")
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        needed = {f"{reader}:{row.column}" for row in benchmark.classes for reader in READERS} | {"name"}
        if missing := sorted(needed - set(table.fieldnames or ())):
            raise InputError(f"{READS} lacks the columns {', '.join(missing)}")
        found = {}
        for line, row in enumerate(table, 2):
            match = NAME.fullmatch((row["name"] or "").strip())
            if match is None:
                raise InputError(f"{READS}, line {line}: the name is not like CQ500-CT-0")
            found[int(match[1])] = {
                known.name: sum(_vote(row[f"{reader}:{known.column}"], line) for reader in READERS) >= 2
                for known in benchmark.classes
            }
    return found


def _vote(value: str | None, line: int) -> bool:
    if value is None or value.strip() not in ("0", "1"):
        raise InputError(f"{READS}, line {line}: a reader's mark is neither 0 nor 1")
    return value.strip() == "1"


def _folders(folder: Path) -> dict[int, tuple[Path, ...]]:
    """The uppermost folders of each study, by its number."""
    found: dict[int, list[Path]] = {}
    level = [Path(folder)]
    for _ in range(DEPTH):
        below = [path for parent in level for path in sorted(parent.iterdir()) if path.is_dir()]
        named = {path: match for path in below if (match := NAME.match(path.name))}
        for path, match in named.items():
            found.setdefault(int(match[1]), []).append(path)
        level = [path for path in below if path not in named]
    return {number: tuple(paths) for number, paths in found.items()}


def _load(folders: tuple[Path, ...], spec: Preprocessing) -> list[PreparedScan]:
    return prepare_files((path for folder in folders for path in folder.rglob("*") if path.is_file()), spec)
