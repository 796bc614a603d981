"""The table of findings: what a study is searched for, in which words, and with which codes it is reported.

The table is a TOML file (`findings.toml` beside this module is the default); its format is explained at its top.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hlip_core.errors import InputError

__all__ = ["Code", "Finding", "FindingsTable"]

PRIVATE_SCHEME = "99HLIP"
DEFAULT = Path(__file__).with_name("findings.toml")

_LABEL = re.compile(r"[a-z][a-z0-9_]*")
_MAX_CODE_VALUE = 16  # PS3.5 Table 6.2-1: a Code Value is an SH
_MAX_CODE_MEANING = 64  # a Code Meaning is an LO


@dataclass(frozen=True)
class Code:
    """A coded concept (PS3.3 Section 8): value, coding scheme designator, meaning."""

    value: str
    scheme: str
    meaning: str
    evidence: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not (0 < len(self.value) <= _MAX_CODE_VALUE and 0 < len(self.scheme) <= _MAX_CODE_VALUE):
            raise InputError(f"code {self.value!r} ({self.scheme}) does not fit a Code Value of 1 to 16 characters")
        if not 0 < len(self.meaning) <= _MAX_CODE_MEANING:
            raise InputError(f"code {self.value!r} ({self.scheme}) needs a meaning of 1 to 64 characters")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of the table. Raises InputError for a row that cannot be meant."""

    label: str
    name: str
    prompts: tuple[str, ...]
    code: Code
    site: Code
    critical: bool = False
    negative_prompts: tuple[str, ...] = ()
    parent: str | None = None

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.label):
            raise InputError(f"finding label {self.label!r}: lower case letters, digits and underscores only")
        if not self.name or not self.prompts or not all(self.prompts + self.negative_prompts):
            raise InputError(f"finding {self.label!r} needs a name and prompts that are not empty")

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Finding:
        """From a row of the TOML table."""
        row = dict(row)
        try:
            return cls(
                label=row.pop("label"),
                name=row.pop("name"),
                prompts=tuple(row.pop("prompts")),
                negative_prompts=tuple(row.pop("negatives", ())),
                critical=row.pop("critical", False),
                code=Code(**row.pop("code")),
                site=Code(**row.pop("site")),
                parent=row.pop("parent", None),
                **row,
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"finding {row.get('label', '?')!r}: missing or unknown field ({error})") from error


@dataclass(frozen=True)
class FindingsTable:
    """Findings and templates, valid once built: unique labels, known parents, each template with one `{}`."""

    version: str
    templates: tuple[str, ...]
    findings: tuple[Finding, ...]

    def __post_init__(self) -> None:
        labels = [finding.label for finding in self.findings]
        if not labels:
            raise InputError("a table without findings")
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise InputError(f"findings that stand twice: {', '.join(sorted(twice))}")
        if orphans := {f.parent for f in self.findings if f.parent} - set(labels):
            raise InputError(f"parents that are no finding: {', '.join(sorted(orphans))}")
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise InputError("each template needs one {}")

    @classmethod
    def from_toml(cls, path: str | Path = DEFAULT) -> FindingsTable:
        """Read a table; without a path the default one. Raises InputError for a file that is no such table."""
        return cls.from_bytes(Path(path).read_bytes())

    @classmethod
    def from_bytes(cls, text: bytes) -> FindingsTable:
        """Read a table from the bytes of a TOML file (UTF-8)."""
        try:
            table = tomllib.loads(text.decode())
        except ValueError as error:  # both UnicodeDecodeError and TOMLDecodeError
            raise InputError(f"the findings table is not TOML: {error}") from error
        rows, templates = table.get("finding", []), table.get("templates", [])
        if not isinstance(rows, list) or not isinstance(templates, list) or "version" not in table:
            raise InputError("a findings table needs version, templates and [[finding]] rows")
        findings = tuple(Finding.from_dict(row) for row in rows)
        return cls(version=str(table["version"]), templates=tuple(templates), findings=findings)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of the table; comments and layout of the file do not count."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the table."""
        return tuple(finding.label for finding in self.findings)

    def __getitem__(self, label: str) -> Finding:
        for finding in self.findings:
            if finding.label == label:
                return finding
        raise KeyError(label)

    def texts(self, prompts: tuple[str, ...]) -> list[str]:
        """Every template filled with every prompt."""
        return [template.format(prompt) for prompt in prompts for template in self.templates]
