"""A contact sheet: three slices of each study, from its prepared scan, with what it was found for above them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hlip_core.errors import DamagedScan
from hlip_core.windows import WINDOWS, Window, display
from plugin.index import search as index_search
from plugin.index.search import Space

if TYPE_CHECKING:
    from hlip_core.volume import PreparedScan
    from plugin.bootstrap import Plugin

__all__ = ["Tile", "contact_sheet"]

SLICE = 224
MARGIN, LINE, TITLE = 12, 22, 30
BLACK, DARK, GREY, WHITE, YELLOW, RED = (
    (0, 0, 0),
    (28, 28, 28),
    (150, 150, 150),
    (240, 240, 240),
    (255, 220, 0),
    (150, 0, 0),
)
NOTICE = "AI, NOT FOR DIAGNOSIS"
GONE = "Its prepared scan is no longer kept here."
DEPTHS = (0.4, 0.55, 0.7)
"""Where to look at a study of which nothing was located: parts of its depth."""
AROUND = 3
"""Slices beside the one where the model looked."""
MOST_TILES = 60
WINDOW_OF = {"skull_fracture": "bone", "subdural_hemorrhage": "blood", "epidural_hemorrhage": "blood"}


@dataclass(frozen=True)
class Tile:
    """What a tile shows: a study, in the window of a finding, under up to two lines of text."""

    study_instance_uid: str
    lines: tuple[str, ...]
    label: str = ""


def contact_sheet(
    plugin: "Plugin", space: Space, tiles: Sequence[Tile], path: Path, *, title: str, caution: str
) -> None:
    """Write a PNG of up to `MOST_TILES` tiles, the first at the top left."""
    tiles = tiles[:MOST_TILES]
    columns = 1 if len(tiles) < 2 else 2
    width, height = 3 * SLICE + MARGIN, 2 * LINE + SLICE + MARGIN
    rows = max(1, math.ceil(len(tiles) / columns))
    sheet = Image.new("RGB", (columns * width + MARGIN, 3 * TITLE + rows * height), BLACK)
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((0, 0, sheet.width, TITLE), fill=RED)
    for number, (words, colour) in enumerate(((NOTICE, WHITE), (title, WHITE), (caution, YELLOW))):
        _write(pen, (MARGIN, number * TITLE + 5), words, sheet.width - 2 * MARGIN, 17, colour)
    for number, tile in enumerate(tiles):
        at = (MARGIN + number % columns * width, 3 * TITLE + number // columns * height)
        sheet.paste(_tile(plugin, space, tile), at)
    sheet.save(path, format="PNG")


def _tile(plugin: "Plugin", space: Space, tile: Tile) -> Image.Image:
    picture = Image.new("RGB", (3 * SLICE, 2 * LINE + SLICE), DARK)
    pen = ImageDraw.Draw(picture)
    for number, words in enumerate(tile.lines[:2]):
        _write(pen, (6, number * LINE + 3), words, 3 * SLICE - 12, 15, WHITE if number == 0 else GREY)
    found = _scan(plugin, space, tile)
    if found is None:
        _write(pen, (6, 2 * LINE + SLICE // 2), GONE, 3 * SLICE - 12, 15, GREY)
        return picture
    scan, depths = found
    for number, depth in enumerate(depths):
        grey = _grey(scan.voxels[depth], scan.modality, tile.label)
        slice_ = Image.fromarray(grey).resize((SLICE, SLICE), Image.Resampling.BICUBIC)
        picture.paste(slice_, (number * SLICE, 2 * LINE))
    return picture


def _scan(plugin: "Plugin", space: Space, tile: Tile) -> "tuple[PreparedScan, list[int]] | None":
    """The scan in which the model looked for the finding, or any other axial one, and three depths of it."""
    from hlip_core.volume import PreparedScan

    location = _location(plugin, space, tile)
    series = index_search.prepared_series(plugin.database, tile.study_instance_uid)
    if location and location["series_instance_uid"] in series:
        series.insert(0, series.pop(series.index(location["series_instance_uid"])))
    scans = []
    for uid in series:
        try:
            scans.append(PreparedScan.load(plugin.spool.prepared / tile.study_instance_uid / f"{uid}.b2nd"))
        except (OSError, DamagedScan):
            continue
        if location and scans[0].series_instance_uid == location["series_instance_uid"]:
            break
    if not scans:
        return None
    scan = next((scan for scan in scans if scan.orientation == "axial"), scans[0])
    last = len(scan.voxels) - 1
    if location and scan.series_instance_uid == location["series_instance_uid"]:
        return scan, [min(max(location["z"] + step, 0), last) for step in (-AROUND, 0, AROUND)]
    return scan, [round(part * last) for part in DEPTHS]


def _location(plugin: "Plugin", space: Space, tile: Tile) -> dict[str, Any] | None:
    """Where the model looked for the tile's finding, or for the most certain one that it reported as positive."""
    rows = index_search.findings_of(plugin.database, space, tile.study_instance_uid)
    located = [row for row in rows if row.get("location")]
    named = [row for row in located if row["label"] == tile.label]
    return (named or located)[0]["location"] if located else None


def _grey(values: np.ndarray, modality: str, label: str) -> np.ndarray:
    window = WINDOWS[WINDOW_OF.get(label, "brain")]
    if modality != "CT":
        low, high = np.percentile(values, (0.5, 99.5))
        window = Window(float(low), float(max(high, low + 1)))
    return display(values, center=window.center, width=window.width)


def _write(
    pen: ImageDraw.ImageDraw, at: tuple[int, int], words: str, width: int, size: int, colour: tuple[int, int, int]
) -> None:
    """A line of text, cut where it does not fit."""
    font = ImageFont.load_default(size)
    while words and font.getlength(words) > width:
        words = words[:-2].rstrip() + "…" if len(words) > 2 else ""
    pen.text(at, words, fill=colour, font=font)
