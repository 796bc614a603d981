"""Templates: Jinja2 text in which every value is escaped for its format, whatever a study puts into it.

A template of HL7 v2 is written with a segment a line; of JSON, values are written without quotes around them:
``"family": {{ patient.name.family }}``.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, UndefinedError
from jinja2.sandbox import SandboxedEnvironment

FOLDER = Path(__file__).with_name("templates")

SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "LN": "http://loinc.org",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "UCUM": "http://unitsofmeasure.org",
}
"""URIs of coding schemes in FHIR (PS3.16 Table 8-1); others get a name in a space of their own."""


class TemplateFault(ValueError):
    """A template cannot be read, or cannot be filled in; the text quotes nothing of a study."""


# ---- HL7 v2 ------------------------------------------------------------------------------------------------

ESCAPES = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "~": "\\R\\", "&": "\\T\\"}
"""HL7 v2.5.1 section 2.7.1, for the delimiters ``|^~\\&``."""


def escape_hl7(value: object) -> str:
    """A value as text of a field: delimiters, and characters that could end a segment or a block, are escaped."""
    if value is None:
        return ""
    return "".join(ESCAPES.get(c) or (_as_hex(c) if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c)
                   for c in str(value))  # fmt: skip


def _as_hex(character: str) -> str:
    return f"\\X{character.encode().hex().upper()}\\"


def hl7_time(iso: str) -> str:
    """An ISO 8601 time as a TS: 20261124130507+0100."""
    return datetime.fromisoformat(iso).strftime("%Y%m%d%H%M%S%z")


def digits(value: str, most: int = 14) -> str:
    """A DICOM date or time, or the two one after the other, as far as it is made of digits."""
    found = re.match(r"\d*", value)
    return found.group()[:most] if found else ""


def _segments(text: str) -> str:
    """A segment a line; blank lines, and blanks around a line, are for the eye."""
    return "".join(f"{line.strip()}\r" for line in text.split("\n") if line.strip())


# ---- JSON --------------------------------------------------------------------------------------------------


class Written(str):
    """Text that a template has made already, such as a macro's: it is not escaped again."""


def as_json(value: object) -> str:
    """A value as JSON, text with its quotes. Raises UndefinedError."""
    if isinstance(value, Written):
        return value
    return json.dumps(str(value) if isinstance(value, Undefined) else value)


def fhir_date(value: str) -> str | None:
    """A DICOM date as FHIR's; None where it is none."""
    try:
        return datetime.strptime(value, "%Y%m%d").date().isoformat()
    except ValueError:
        return None


def system(scheme: str) -> str:
    """The URI of a coding scheme."""
    return SYSTEMS.get(scheme) or f"urn:hlip:{scheme}"


def _fhir(text: str) -> str:
    return json.dumps(without_nothing(json.loads(text)), ensure_ascii=False, separators=(",", ":"))


def without_nothing(value: Any) -> Any:
    """JSON without nulls, empty texts, lists and objects, which FHIR does not allow (ele-1)."""
    if isinstance(value, dict):
        kept = {key: without_nothing(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, "", [], {})}
    if isinstance(value, list):
        return [kept for item in value if (kept := without_nothing(item)) not in (None, "", [], {})]
    return value


# ---- both --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """How values are written into a text, and what makes the text a message."""

    file: str
    escape: Callable[[Any], str]
    finish: Callable[[str], str]


def _json(text: str) -> str:
    return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))


FORMATS = {
    "hl7": Format("oru_r01.hl7", escape_hl7, _segments),
    "fhir": Format("diagnostic_report.json", as_json, _fhir),
    "webhook": Format("webhook.json", as_json, _json),
}
"""By the kind of receiver."""

FILTERS: dict[str, Callable] = {
    "hl7_time": hl7_time,
    "digits": digits,
    "fhir_date": fhir_date,
    "system": system,
    "digest": lambda row: f"{row['what']} {row['value']}",
    "written": Written,
}


class MessageTemplate:
    """A template of a kind of receiver: ours, or a site's `file`. Raises TemplateFault."""

    def __init__(self, kind: str, file: str = "") -> None:
        self._format = FORMATS[kind]
        self._path = Path(file).expanduser() if file else FOLDER / self._format.file
        self._template = self._compiled()

    def _compiled(self) -> Template:
        environment = SandboxedEnvironment(
            finalize=self._format.escape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters.update(FILTERS)
        try:
            return environment.from_string(self._path.read_text())
        except TemplateSyntaxError as error:
            raise TemplateFault(f"{self._path}, line {error.lineno}: {error.message}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateFault(f"{self._path} cannot be read: {type(error).__name__}") from None

    def render(self, context: Mapping[str, Any]) -> str:
        """The text of a message. Raises TemplateFault."""
        try:
            return self._format.finish(self._template.render(context))
        except UndefinedError as error:
            raise TemplateFault(f"{self._path.name}: {error.message}") from None
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise TemplateFault(f"{self._path.name}: {type(error).__name__}") from None
