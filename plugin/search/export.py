"""Rows into a file: CSV, JSON or Parquet by its ending."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plugin.index.filters import SearchError

__all__ = ["KINDS", "check_kind", "write_rows"]

KINDS = (".csv", ".json", ".parquet")


def check_kind(path: Path) -> None:
    """Raises SearchError for a file that could not be written: better before the work than after it."""
    if path.suffix not in KINDS:
        raise SearchError(f"{path.name}: the ending says what it becomes, one of {', '.join(KINDS)}")
    if path.suffix == ".parquet":
        _pyarrow()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Write rows of plain values. In a CSV a cell that a spreadsheet would run as a formula begins with a quote."""
    check_kind(path)
    columns = list(columns)
    if path.suffix == ".json":
        path.write_text(json.dumps([dict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        arrow, parquet = _pyarrow()
        values: dict[str, list[Any]] = {name: [] for name in columns}
        for row in rows:
            for name, column in values.items():
                column.append(row.get(name))
        parquet.write_table(arrow.table(values), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SearchError("Parquet needs pyarrow: pip install 'hlip-pacs[parquet]', or write .csv or .json") from error
    return pyarrow, pyarrow.parquet
