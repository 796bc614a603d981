"""A study's stages as a picture: when each was, and how long it took. Long waits are cut short, and marked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

WIDTH, LEFT, RIGHT = 680, 165, 135
ROW = 24
LEAST_BAR = 3.0
LONGEST_WAIT = 0.2
"""A wait is drawn at most as long as this part of all the work."""

MAX_ROWS = 40
NAMES = {
    "prepared": "prepare", "refused": "refuse", "analysed": "analyse", "delivered": "deliver", "deleted": "delete",
    "delivery refused": "delivery refused", "settled": "complete", "unchanged": "looked again, unchanged",
    "withdrawn": "withdrawn", "assessed": "assessed", "first image": "first image",
}  # fmt: skip
MERGED = frozenset({"delivered", "deleted", "delivery refused"})
"""Objects that were sent one after the other are one row."""

MERGE_SECONDS = 30.0


@dataclass
class Step:
    """A stage: seconds since 1970, equal where it took no time."""

    name: str
    start: float
    end: float
    own_seconds: float | None
    count: int = 1


@dataclass(frozen=True)
class Bar:
    """A row of the picture, in its units."""

    y: float
    x: float
    width: float
    name: str
    when: str
    took: str
    is_moment: bool


@dataclass(frozen=True)
class Picture:
    height: float
    bars: tuple[Bar, ...]
    cuts: tuple[float, ...]
    """Where a wait was cut short."""

    width: int = WIDTH
    right: int = WIDTH - RIGHT


def steps(study: Mapping[str, Any]) -> list[Step]:
    """The stages of a study of `plugin.index.overview`, in the order of their ends."""
    numbers = {series["series_instance_uid"]: series["series_number"] for series in study["series"]}
    found: list[Step] = []
    first, last = study["first_image_at"], study["last_image_at"]
    if first is not None:
        found.append(Step("receive", first, max(first, last or first), (last or first) - first))
    for event in study["timeline"]:
        stage, at, seconds = event["stage"], event["at"], event["seconds"]
        if stage == "first image":
            continue
        number = numbers.get(event["series_instance_uid"])
        name = NAMES.get(stage, stage) + (f" series {number}" if number is not None else "")
        before = found[-1] if found else None
        if before and before.name == name and stage in MERGED and at - before.end < MERGE_SECONDS:
            before.end, before.count = at, before.count + 1
            before.own_seconds = (before.own_seconds or 0) + (seconds or 0)
        else:
            found.append(Step(name, at - (seconds or 0), at, seconds))
    return found[-MAX_ROWS:]


def picture(study: Mapping[str, Any]) -> Picture | None:
    """None where nothing happened yet."""
    found = steps(study)
    if not found:
        return None
    times, places, cuts = _scale(found)
    origin = times[0]

    def x(at: float) -> float:
        return LEFT + float(np.interp(at, times, places)) * (WIDTH - LEFT - RIGHT)

    bars = tuple(
        Bar(
            y=number * ROW,
            x=round(x(step.start), 1),
            width=round(max(x(step.end) - x(step.start), LEAST_BAR), 1),
            name=step.name + (f" ({step.count} objects)" if step.count > 1 else ""),
            when=_since(step.end - origin),
            took="" if step.own_seconds is None else f"{step.own_seconds:.2f} s",
            is_moment=step.own_seconds is None,
        )
        for number, step in enumerate(found)
    )
    return Picture(len(found) * ROW, bars, tuple(round(x(at), 1) for at in cuts))


def _since(seconds: float) -> str:
    if seconds < 600:
        return f"+{seconds:.1f} s"
    return f"+{seconds / 60:.0f} min" if seconds < 7200 else f"+{seconds / 3600:.1f} h"


def _scale(found: Sequence[Step]) -> tuple[list[float], list[float], list[float]]:
    """Times, their places 0..1, and the times at which a wait was cut short."""
    busy = list(_merged(sorted((step.start, step.end) for step in found)))
    work = sum(end - start for start, end in busy)
    longest = max(LONGEST_WAIT * work, 0.5)
    times, places, cuts = [busy[0][0], busy[0][1]], [0.0, busy[0][1] - busy[0][0]], []
    for (_, before), (start, end) in pairwise(busy):
        wait = min(start - before, longest)
        if wait < start - before:
            cuts.append((before + start) / 2)
        times += [start, end]
        places += [places[-1] + wait, places[-1] + wait + end - start]
    whole = places[-1] or 1.0
    return times, [place / whole for place in places], cuts


def _merged(spans: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    start, end = spans[0]
    for begins, ends in spans[1:]:
        if begins > end:
            yield start, end
            start, end = begins, ends
        end = max(end, ends)
    yield start, end
