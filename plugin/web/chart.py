"""Small charts as SVG: their geometry, which a template draws. Pixels of a view box; y grows downwards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 10, 24
HOUR = 3600.0


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    kind: str
    says: str


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    says: str


@dataclass(frozen=True)
class Line:
    kind: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Tick:
    at: float
    says: str


@dataclass(frozen=True)
class Chart:
    """What a template draws."""

    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT


def top_of(largest: float) -> float:
    """A round number not below it: 1, 2, 4, 5, 6, 8 or 10 times a power of ten."""
    if largest <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(largest))
    return next(step * unit for step in (1, 2, 4, 5, 6, 8, 10) if step * unit >= largest * (1 - 1e-9))


def _y(value: float, top: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top, 1)


def _slot(count: int) -> float:
    return (WIDTH - LEFT - RIGHT) / count


def _hour(at: float, count: int, i: int) -> str:
    """The hour that entry `i` of `count` begins with, when the last one ends at `at`."""
    return f"{datetime.fromtimestamp(at - (count - i) * HOUR):%H:%M}"


def _x_ticks(at: float, count: int) -> tuple[Tick, ...]:
    """Every four hours, and now."""
    hours = [Tick(round(LEFT + i * _slot(count), 1), _hour(at, count, i)) for i in range(0, count, 4)]
    return (*hours, Tick(WIDTH - RIGHT, "now"))


def _y_ticks(top: float, unit: str = "") -> tuple[Tick, ...]:
    return tuple(Tick(_y(value, top), f"{value:g}{unit}") for value in (0.0, top / 2, top) if unit or value % 1 == 0)


def stacked_bars(at: float, series: dict[str, Sequence[int]]) -> Chart:
    """Counts an hour, the last hour ending at `at`; the first named lies at the bottom."""
    count = len(next(iter(series.values())))
    top = top_of(max(2, max(map(sum, zip(*series.values(), strict=True)))))
    slot, bars = _slot(count), []
    for i in range(count):
        base = 0
        for kind, values in series.items():
            if not values[i]:
                continue
            low, high = _y(base, top), _y(base + values[i], top)
            says = f"{_hour(at, count, i)} to {_hour(at, count, i + 1)}: {values[i]} {kind}"
            x = round(LEFT + (i + 0.12) * slot, 1)
            bars.append(Bar(x, high, round(0.76 * slot, 1), round(low - high, 1), kind, says))
            base += values[i]
    return Chart(_x_ticks(at, count), _y_ticks(top), bars=tuple(bars))


def hourly_lines(at: float, series: dict[str, Sequence[float | None]]) -> Chart:
    """Seconds an hour; hours without a value are gaps."""
    count = len(next(iter(series.values())))
    largest = max((value for values in series.values() for value in values if value is not None), default=0.0)
    top, unit, scale = _seconds_or_minutes(largest)
    lines = []
    for kind, values in series.items():
        dots = [
            Dot(
                round(LEFT + (i + 0.5) * _slot(count), 1),
                _y(value / scale, top),
                f"{_hour(at, count, i)} to {_hour(at, count, i + 1)}: {kind} {value / scale:.2g}{unit}",
            )
            if value is not None
            else None
            for i, value in enumerate(values)
        ]
        lines.append(Line(kind, _path(dots), tuple(dot for dot in dots if dot is not None)))
    return Chart(_x_ticks(at, count), _y_ticks(top, unit), lines=tuple(lines))


def _seconds_or_minutes(largest: float) -> tuple[float, str, float]:
    """The axis' top, its unit, and the unit in seconds."""
    unit, scale = (" min", 60.0) if largest >= 180 else (" s", 1.0)
    return top_of(largest / scale), unit, scale


def _path(dots: Sequence[Dot | None]) -> str:
    """An SVG path that lifts the pen at gaps."""
    pieces, is_down = [], False
    for dot in dots:
        if dot is not None:
            pieces.append(f"{'L' if is_down else 'M'}{dot.x} {dot.y}")
        is_down = dot is not None
    return " ".join(pieces)
