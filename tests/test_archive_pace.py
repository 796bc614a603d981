"""The pace of a scan: the hours that it keeps, and how many bytes and studies may come."""

import threading
from datetime import datetime

import pytest

from plugin.archive.pace import Pace, closed_until
from plugin.archive.source import Stopped
from plugin.settings import Settings

MONDAY = datetime(2026, 11, 23)


@pytest.mark.parametrize(
    ("now", "hours", "until"),
    [
        ("23 08:00", ["07:00-19:00"], "23 19:00"),
        ("23 19:00", ["07:00-19:00"], None),
        ("23 06:59", ["07:00-19:00"], None),
        ("28 08:00", ["Mon-Fri 07:00-19:00"], None),
        ("28 08:00", ["Mon-Fri 07:00-19:00", "Sat 08:00-12:00"], "28 12:00"),
        ("24 02:00", ["22:00-06:00"], "24 06:00"),
        ("23 23:00", ["22:00-06:00", "06:00-07:30"], "24 07:30"),
        ("29 01:00", ["Sat 22:00-06:00"], "29 06:00"),
        ("29 23:00", ["Sat 22:00-06:00"], None),
        ("23 23:59", ["20:00-24:00"], "24 00:00"),
        ("29 12:00", ["Sat-Mon 00:00-24:00"], "24 00:00"),
    ],
)
def test_working_hours_are_kept(now: str, hours: list[str], until: str | None) -> None:
    at = datetime.strptime(f"2026 11 {now}", "%Y %m %d %H:%M")
    found = closed_until(at, hours)
    if until == "24 00:00" and now.startswith("29"):
        assert found == datetime(2026, 12, 1)
    else:
        assert found == (None if until is None else datetime.strptime(f"2026 11 {until}", "%Y %m %d %H:%M"))


@pytest.mark.parametrize("wrong", ["7-19", "Mon 7:00-19:00", "25:00-26:00", "Mon-Fry 07:00-19:00"])
def test_hours_that_are_none_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="hours are written"):
        Settings(archive={"not_during": [wrong]})


def test_bytes_and_studies_come_no_faster_than_allowed() -> None:
    from time import monotonic

    stop = threading.Event()
    pace = Pace(hours=(), studies_per_hour=36000, bytes_per_second=1e6, stop=stop)
    began = monotonic()
    pace.took(100_000)
    pace.took(100_000)
    assert 0.2 <= monotonic() - began < 2
    pace.begun()
    pace.begun()
    assert not pace.may_begin() and "studies an hour" in pace.why
    pace.leave_alone(30)
    assert not pace.may_begin() and "left alone" in pace.why
    stop.set()
    with pytest.raises(Stopped):
        pace.took(100_000)
