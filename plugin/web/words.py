"""How values read on the page: times, durations, states, reasons. Text from DICOM is made harmless here too."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from hlip_core.reasons import Reason
from plugin.lifecycle import urgency

TONES = {
    "reported": "good", "delivered": "good", "prepared": "good",
    "failed": "bad", "refused": "warn", "held": "warn", "withdrawn": "warn",
    "analysing": "busy", "preparing": "busy", "sending": "busy", "receiving": "busy",
    "ready": "busy", "waiting": "busy",
}  # fmt: skip
"""The colour of a state; one that is not here has none."""

UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def tone(state: str) -> str:
    return TONES.get(state, "")


def clock(seconds: float | None) -> str:
    """A time of the index, in this host's zone."""
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"


def iso(seconds: float | None) -> str:
    """The same for machines, with its zone."""
    return "" if seconds is None else datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def duration(seconds: float | None) -> str:
    """0.42 s, 38 s, 12 min, 3 h, 2 d."""
    if seconds is None:
        return ""
    for size, unit in UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def dicom_date(text: str) -> str:
    """A DA value as people write it; anything else as it is."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else plain(text)


def person_name(text: str) -> str:
    """A PN value: the first group, its components apart (PS3.5 section 6.2.1)."""
    family, *others = plain(text).split("=")[0].split("^")
    given = " ".join(filter(None, others))
    return f"{family}, {given}" if given else family


def plain(value: object) -> str:
    """On one line, without what a browser would obey beside markup: controls, and marks that turn text around."""
    return "".join(c if c.isprintable() else " " for c in str(value if value is not None else "")).strip()


def reason(value: str | None) -> str:
    """What a reason code says, as a sentence."""
    try:
        return Reason(value or "").sentence
    except ValueError:
        return plain(value)


def score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


FILTERS: dict[str, Callable[..., Any]] = {
    "clock": clock, "iso": iso, "duration": duration, "dicom_date": dicom_date, "person_name": person_name,
    "plain": plain, "reason": reason, "score": score, "tone": tone, "urgency": urgency,
}  # fmt: skip
"""The names under which templates use them."""
