"""The ROC curves of all classes in one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from hlip_core.metrics import auc, roc

__all__ = ["Curve", "draw_roc"]

SIDE, MARGIN, LINE, LEGEND = 420, 48, 18, 300
INK, GRID = "#222222", "#dddddd"
COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#7f7f7f", "#bcbd22",
    "#000080", "#800000",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Curve:
    """One class: scores [S] and truth [S] of the studies of which it is known, both sides present."""

    name: str
    scores: np.ndarray
    truth: np.ndarray


def draw_roc(curves: Sequence[Curve], title: str) -> bytes:
    """A PNG: sensitivity over 1 - specificity, a line for each class, names with their AUC beside."""
    image = Image.new("RGB", (SIDE + 2 * MARGIN + LEGEND, SIDE + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(image)
    for tick in np.linspace(0, 1, 6):
        draw.line([_place(tick, 0), _place(tick, 1)], fill=GRID)
        draw.line([_place(0, tick), _place(1, tick)], fill=GRID)
        draw.text(_place(tick, -0.01), f"{tick:.1f}", fill=INK, anchor="mt")
        draw.text(_place(-0.02, tick), f"{tick:.1f}", fill=INK, anchor="rm")
    draw.line([_place(0, 0), _place(1, 1)], fill=GRID, width=2)
    left = MARGIN + SIDE + 20
    for index, curve in enumerate(curves):
        colour = COLOURS[index % len(COLOURS)]
        x, y = roc(curve.scores, curve.truth)
        draw.line([_place(a, b) for a, b in zip(x, y, strict=True)], fill=colour, width=2)
        top = MARGIN + 10 + index * LINE
        draw.line([left, top, left + 22, top], fill=colour, width=3)
        text = f"{curve.name}  {auc(curve.scores, curve.truth):.3f}  ({int(curve.truth.sum())} positive)"
        draw.text((left + 30, top), text, fill=INK, anchor="lm")
    draw.text((MARGIN, MARGIN / 2), f"{title}: sensitivity", fill=INK, anchor="lm")
    draw.text((MARGIN + SIDE / 2, SIDE + 2 * MARGIN - 14), "1 - specificity", fill=INK, anchor="mm")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _place(x: float, y: float) -> tuple[float, float]:
    """Pixel of a point of the unit square."""
    return MARGIN + x * SIDE, MARGIN + (1 - y) * SIDE
