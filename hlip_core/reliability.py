"""The reliability diagram: what was predicted against what was seen, as numbers and as a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["Bin", "draw_reliability", "reliability"]

SIZE, MARGIN = 360, 44
INK, GRID, CURVE, BAR = "#222222", "#cccccc", "#1f5fa8", "#a9c4e4"


@dataclass(frozen=True)
class Bin:
    """Studies of similar probability: their mean probability, the share that is positive, how many they are."""

    predicted: float
    seen: float
    studies: int


def reliability(probabilities: np.ndarray, truth: np.ndarray, *, bins: int = 10) -> tuple[Bin, ...]:
    """Bins of equal width over 0..1, without the empty ones; probabilities and truth are [S]."""
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    members = [index == i for i in range(bins)]
    return tuple(Bin(float(probabilities[m].mean()), float(truth[m].mean()), int(m.sum())) for m in members if m.any())


def draw_reliability(rows: tuple[Bin, ...], title: str) -> bytes:
    """The diagram as a PNG: a point for each bin, the diagonal of a perfect calibration, bars for the studies."""
    image = Image.new("RGB", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(image)
    most = max(row.studies for row in rows)
    for row in rows:
        x, _ = _place(row.predicted, 0)
        draw.rectangle([x - 8, _place(0, 0.25 * row.studies / most)[1], x + 8, _place(0, 0)[1]], fill=BAR)
    for tick in np.linspace(0, 1, 6):
        draw.line([_place(tick, 0), _place(tick, 1)], fill=GRID)
        draw.line([_place(0, tick), _place(1, tick)], fill=GRID)
        draw.text(_place(tick, 0), f"{tick:.1f}", fill=INK, anchor="mt")
        draw.text(_place(-0.02, tick), f"{tick:.1f}", fill=INK, anchor="rm")
    draw.line([_place(0, 0), _place(1, 1)], fill=INK)
    points = [_place(row.predicted, row.seen) for row in rows]
    draw.line(points, fill=CURVE, width=2)
    for x, y in points:
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=CURVE)
    draw.text((SIZE / 2, 12), title, fill=INK, anchor="mt")
    draw.text((SIZE / 2, SIZE - 14), "probability (bars: studies)", fill=INK, anchor="mm")
    draw.text((MARGIN, 30), "share that is positive", fill=INK, anchor="lm")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _place(x: float, y: float) -> tuple[float, float]:
    """Pixel of a point of the unit square."""
    side = SIZE - 2 * MARGIN
    return MARGIN + x * side, SIZE - MARGIN - y * side
