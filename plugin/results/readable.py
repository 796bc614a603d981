"""A structured report as a page for people, in the terminal or as HTML: ours, or anyone's (TID 1500, KO, text).

What is in a report was written by others: control characters never reach the terminal, and HTML is escaped.
A content item that is broken is shown as far as it goes; nothing raises but a dataset that is no report.
"""

import html as markup
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from pydicom import Dataset
from pydicom.valuerep import PersonName
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

CONTEXT = frozenset({"HAS OBS CONTEXT", "HAS CONCEPT MOD", "HAS ACQ CONTEXT"})
REFERENCES = frozenset({"IMAGE", "COMPOSITE", "WAVEFORM", "UIDREF"})
ALARMING = frozenset({"Present", "PARTIAL"})

HEADER = (
    ("Patient", "PatientName"),
    ("Patient ID", "PatientID"),
    ("Born", "PatientBirthDate"),
    ("Sex", "PatientSex"),
    ("Study", "StudyDescription"),
    ("Accession number", "AccessionNumber"),
    ("Series", "SeriesDescription"),
    ("Date", "ContentDate"),
    ("Time", "ContentTime"),
    ("Made by", "Manufacturer"),
    ("Model", "ManufacturerModelName"),
    ("Completion", "CompletionFlag"),
    ("Verification", "VerificationFlag"),
)
"""What stands above the content: name on the page, keyword."""

HARMLESS = frozenset("\n\t\N{NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MOST_REFERENCES = 6
"""How many references in a row are shown one by one; image libraries hold hundreds."""

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2530 }
h1 { font-size: 1.4rem } h2, h3, h4 { font-size: 1.05rem; margin: 1rem 0 .2rem }
section { margin-left: 1rem } p { margin: .15rem 0; white-space: pre-line; overflow-wrap: anywhere }
.alarm { color: #b00020; font-weight: 700 } .context { color: #6b7785 }
table { border-collapse: collapse } th { text-align: left; padding-right: 1rem; font-weight: 600 }
"""


@dataclass(frozen=True)
class Item:
    """One content item: the meaning of its concept name, its value as text, what is below it."""

    name: str
    value: str
    children: tuple["Item", ...] = ()
    is_section: bool = False
    is_context: bool = False
    is_reference: bool = False


@dataclass(frozen=True)
class Page:
    """A report, ready to be shown."""

    title: str
    header: tuple[tuple[str, str], ...]
    items: tuple[Item, ...]


def page_of(report: Dataset) -> Page:
    """Read a structured report or key object selection. Raises ValueError for a dataset that is neither."""
    if report.get("ValueType") != "CONTAINER":
        raise ValueError("not a structured report: it has no content tree")
    values = ((name, report[keyword]) for name, keyword in HEADER if keyword in report)
    header = tuple((name, HEADER_FORMATS.get(element.VR, _plain)(element.value)) for name, element in values)
    return Page(
        title=_meaning(report, "ConceptNameCodeSequence") or "Structured report",
        header=tuple((name, value) for name, value in header if value),
        items=tuple(_items(report)),
    )


def _items(parent: Dataset) -> Iterator[Item]:
    """The children; of a long row of references the first ones and the number of the others."""
    for (name, is_reference), row in groupby(_each(parent), lambda item: (item.name, item.is_reference)):
        items = list(row)
        shown = MOST_REFERENCES if is_reference else len(items)
        yield from items[:shown]
        if len(items) > shown:
            yield Item(name, f"and {len(items) - shown} more")


def _each(parent: Dataset) -> Iterator[Item]:
    for item in parent.get("ContentSequence") or ():
        value_type = str(item.get("ValueType") or "")
        if not value_type:
            place = ".".join(str(number) for number in _values(item.get("ReferencedContentItemIdentifier")))
            yield Item("See", f"content item {place}")
            continue
        yield Item(
            name=_meaning(item, "ConceptNameCodeSequence") or value_type.capitalize(),
            value=FORMATS.get(value_type, _unknown)(item),
            children=tuple(_items(item)),
            is_section=value_type == "CONTAINER",
            is_context=item.get("RelationshipType") in CONTEXT,
            is_reference=value_type in REFERENCES and "ContentSequence" not in item,
        )


# ---- values ------------------------------------------------------------------------------------------------


def _values(value: object) -> list[object]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) or hasattr(value, "__iter__") else [value]


def _plain(value: object) -> str:
    """Text without what a terminal or a browser would obey; line ends are one newline."""
    text = "" if value is None else str(value)
    if isinstance(value, PersonName):
        text = " / ".join(group.replace("^", " ").strip() for group in text.split("=") if group)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    return "".join(character if _is_harmless(character) else REPLACEMENT for character in lines)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in HARMLESS


def _first(item: Dataset, keyword: str) -> Dataset:
    """The first item of a sequence, empty where there is none."""
    return next(iter(item.get(keyword) or ()), Dataset())


def _meaning(item: Dataset, keyword: str) -> str:
    return _plain(_first(item, keyword).get("CodeMeaning"))


def _simple(keyword: str) -> Callable[[Dataset], str]:
    return lambda item: _plain(item.get(keyword))


def _date(value: object) -> str:
    text = _plain(value)
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else text


def _time(value: object) -> str:
    text = _plain(value)
    return f"{text[:2]}:{text[2:4]}:{text[4:6]}" if len(text) >= 6 and text[:6].isdigit() else text


def _date_time(value: object) -> str:
    text = _plain(value)
    return f"{_date(text[:8])} {_time(text[8:])}".strip()


def _coded(item: Dataset) -> str:
    return _meaning(item, "ConceptCodeSequence")


def _number(item: Dataset) -> str:
    measured = _first(item, "MeasuredValueSequence")
    if "NumericValue" not in measured:
        return _meaning(item, "NumericValueQualifierCodeSequence") or "no value"
    unit = _plain(_first(measured, "MeasurementUnitsCodeSequence").get("CodeValue"))
    # a UCUM annotation such as {score} says what is counted, it is no unit; 1 is "no unit"
    shown = "" if unit == "1" or unit.startswith("{") else unit
    value = _plain(measured.NumericValue)
    return f"{value}{shown}" if shown == "%" else f"{value} {shown}".strip()


def _reference(item: Dataset) -> str:
    reference = _first(item, "ReferencedSOPSequence")
    kind = reference.get("ReferencedSOPClassUID")
    frames = ", ".join(str(frame) for frame in _values(reference.get("ReferencedFrameNumber")))
    parts = (
        getattr(kind, "name", str(kind or "")).removesuffix(" Storage"),
        _plain(reference.get("ReferencedSOPInstanceUID")),
        f"frame {frames}" if frames else "",
    )
    return " ".join(filter(None, parts))


def _coordinates(item: Dataset) -> str:
    values = [f"{float(str(value)):.4g}" for value in _values(item.get("GraphicData"))]
    size = 3 if item.get("ValueType") == "SCOORD3D" else 2
    points = [f"({', '.join(values[start : start + size])})" for start in range(0, len(values), size)]
    more = f" and {len(points) - 4} more" if len(points) > 4 else ""
    return f"{_plain(item.get('GraphicType'))} {' '.join(points[:4])}{more}"


def _unknown(item: Dataset) -> str:
    return f"[{_plain(item.get('ValueType'))}]"


FORMATS: dict[str, Callable[[Dataset], str]] = {
    "CONTAINER": lambda item: "",
    "TEXT": _simple("TextValue"),
    "CODE": _coded,
    "NUM": _number,
    "UIDREF": _simple("UID"),
    "PNAME": _simple("PersonName"),
    "DATE": lambda item: _date(item.get("Date")),
    "TIME": lambda item: _time(item.get("Time")),
    "DATETIME": lambda item: _date_time(item.get("DateTime")),
    "IMAGE": _reference,
    "COMPOSITE": _reference,
    "WAVEFORM": _reference,
    "SCOORD": _coordinates,
    "SCOORD3D": _coordinates,
    "TCOORD": _simple("TemporalRangeType"),
}
"""How each value type (PS3.3 C.17.3.2.1) reads."""


HEADER_FORMATS: dict[str, Callable[[object], str]] = {"DA": _date, "TM": _time}


# ---- terminal ----------------------------------------------------------------------------------------------


def terminal(page: Page) -> RenderableType:
    """The page for a rich console."""
    header = Table.grid(padding=(0, 2))
    for name, value in page.header:
        header.add_row(Text(name, style="dim"), Text(value, style=_style(value)))
    return Group(Panel(header, title=Text(page.title), title_align="left"), *_lines(page.items, 0))


def _lines(items: tuple[Item, ...], depth: int) -> Iterator[RenderableType]:
    for item in items:
        if item.is_section:
            yield Padding(Text(item.name, style="bold underline"), (1 if depth == 0 else 0, 0, 0, 2 * depth))
        else:
            base = "dim" if item.is_context else ""
            name = Text(f"{item.name}: ", style=base or "bold")
            line = name.append(Text(item.value, style=base or _style(item.value)))
            yield Padding(line, (0, 0, 0, 2 * depth))
        yield from _lines(item.children, depth + 1)


def _style(value: str) -> str:
    return "bold red" if is_alarming(value) else ""


def is_alarming(value: str) -> bool:
    """Whether a reader must not miss it."""
    return value in ALARMING or value.split(" ", 1)[0] in ("UNTRAINED", "PHANTOM", "PARTIAL:")


# ---- HTML --------------------------------------------------------------------------------------------------


def html(page: Page) -> str:
    """The page as one HTML document that runs nothing and loads nothing."""
    title = markup.escape(page.title)
    rows = "".join(
        f"<tr><th>{markup.escape(name)}</th><td{_class(value)}>{markup.escape(value)}</td></tr>\n"
        for name, value in page.header
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<table>\n{rows}</table>\n{''.join(_elements(page.items, 2))}</body>\n</html>\n"
    )


def _elements(items: tuple[Item, ...], level: int) -> Iterator[str]:
    for item in items:
        name = markup.escape(item.name)
        if item.is_section:
            heading = f"h{min(level, 6)}"
            yield f"<{heading}>{name}</{heading}>\n"
        else:
            style = ' class="context"' if item.is_context else ""
            value = f"<span{_class(item.value)}>{markup.escape(item.value)}</span>"
            yield f'<p{style} dir="auto"><b>{name}:</b> {value}</p>\n'
        if item.children:
            yield "<section>\n"
            yield from _elements(item.children, level + 1)
            yield "</section>\n"


def _class(value: str) -> str:
    return ' class="alarm"' if is_alarming(value) else ""
