"""A whole synthetic study: drawn from a seed, rendered, scanned, and written as DICOM with its labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset

from . import bodies, ct_image, lesions, population, reports, scanner
from .ct_image import SeriesPlan, uid
from .grid import Grid, Point
from .head import Head
from .lesions import Lesion
from .masks import LesionMask
from .population import BLEEDS, LABEL_OF_KIND, LABELS, SERIES
from .scanner import Geometry, Scanner
from .truth import HIGH, LOW, Truth, render

VERSION = 1
"""Of the simulation: another version makes other studies, and other UIDs."""
BODIES = ("head", *bodies.PARTS)
SHIFT_MM = 3.0
"""Midline shift from here on."""
PUSH_MM = 5.0
"""Mass effect from here on."""
MINIMUM_ML = 0.05
"""A lesion that fills less is not in the labels: nobody could see it."""


@dataclass(frozen=True)
class Preset:
    """How fine a study is made: in-plane size (pixels), the truth's voxels (z, y, x) and thinnest slices (mm)."""

    size: int
    voxel_mm: Point
    thinnest_mm: float


PRESETS: dict[str, Preset] = {
    "full": Preset(512, (1.25, 0.8, 0.8), 1.25),
    "training": Preset(256, (2.0, 1.25, 1.25), 3.0),
    "small": Preset(96, (2.5, 2.0, 2.0), 5.0),
    "tiny": Preset(64, (4.0, 3.5, 3.5), 5.0),
}


@dataclass(frozen=True)
class SeriesRecord:
    """One series of a study, as the manifest lists it."""

    series_instance_uid: str
    kind: str
    description: str
    folder: str
    instances: int


@dataclass(frozen=True)
class PhantomStudy:
    """A written study. `folder` holds a folder for each series, `study.json` and `lesions.npz`.

    labels: the eleven findings; conspicuity: 0..1 for each finding that is present; sentences: the report's;
    lesions: what was drawn; shift_mm: midline shift, positive to the patient's left.
    """

    folder: Path
    study_instance_uid: str
    seed: int
    body: str
    labels: dict[str, bool]
    conspicuity: dict[str, float]
    sentences: tuple[str, ...]
    series: tuple[SeriesRecord, ...]
    lesions: tuple[dict[str, Any], ...]
    shift_mm: float
    parameters: str

    @property
    def report(self) -> str:
        """The report as one text."""
        return " ".join(self.sentences)

    def row(self) -> dict[str, Any]:
        """The study as one row of the manifest, JSON types only; `folder` is its name."""
        return {**asdict(self), "folder": self.folder.name, "report": self.report}


class Examination:
    """A study before it is written: everything follows from the seed and the arguments.

    Args:
        seed: decides all that is not asked for.
        kinds: lesions (keys of `lesions.KINDS`, or labels), none when empty, drawn when None.
        series: kinds of series (keys of SERIES), drawn when None.
        conspicuity: limits of the lesions' conspicuity, 0..1.
        body: "head", or a body to refuse.
        body_part: BodyPartExamined; None for what is true.
        preset: a key of PRESETS. size: pixels, the preset's when None.
        make: of the scanner, a key of `scanner.MAKES`; keep "other" for evaluation.
    """

    def __init__(
        self,
        *,
        seed: int,
        kinds: Sequence[str] | None = None,
        series: Sequence[str] | None = None,
        conspicuity: tuple[float, float] = (0.0, 1.0),
        size: int | None = None,
        body: str = "head",
        body_part: str | None = None,
        preset: str = "full",
        make: str = "usual",
    ) -> None:
        for name, known, what in (
            (body, BODIES, "body"), (preset, PRESETS, "preset"), (make, scanner.MAKES, "make of scanner"),
            *((name, SERIES, "series") for name in series or ()),
        ):  # fmt: skip
            if name not in known:
                raise ValueError(f"no such {what}: {name!r}; there are {', '.join(known)}")
        self.seed, self.body, self.preset = seed, body, PRESETS[preset]
        self.size = size or self.preset.size
        asked = {
            "version": VERSION, "seed": seed, "kinds": None if kinds is None else list(kinds),
            "series": None if series is None else list(series), "conspicuity": list(conspicuity),
            "size": self.size, "body": body, "body_part": body_part, "preset": preset, "make": make,
        }  # fmt: skip
        self.parameters = json.dumps(asked, sort_keys=True)
        self.rng = np.random.default_rng(np.random.SeedSequence([VERSION, seed]))
        self.head, self.lesions = self._draw_head(kinds, conspicuity)
        self.scanner = Scanner.draw(self.rng, scanner.MAKES[make])
        drawn = population.draw_series(self.rng)
        self.series = tuple(drawn if series is None else series)
        self.key = uid(self.parameters)
        self.header = ct_image.study_header(key=self.key, seed=seed, body=body, body_part=body_part, rng=self.rng)

    def _draw_head(
        self, kinds: Sequence[str] | None, conspicuity: tuple[float, float]
    ) -> tuple[Head, tuple[Lesion, ...]]:
        head = Head.draw(self.rng)
        drawn = population.draw_kinds(self.rng)
        wanted = drawn if kinds is None else tuple(kind_of(name) for name in kinds if name != "none")
        if self.body != "head":
            wanted = ()
        found = tuple(lesions.draw(kind, self.rng, head, float(self.rng.uniform(*conspicuity))) for kind in wanted)
        return lesions.adapt(head, found), found

    @cached_property
    def truth(self) -> Truth:
        """The rendered head or body."""
        if self.body == "head":
            grid = Grid.covering(LOW, HIGH, self.preset.voxel_mm)
            return render(self.head, self.lesions, grid, self.rng)
        step = 2.5 if self.preset.size > 64 else 5.0
        grid = Grid.covering(bodies.LOW, bodies.HIGH, (step, step, step))
        hu = bodies.render(self.body, grid, self.rng)
        return Truth(grid, self.head, (), hu, np.zeros(grid.shape, np.uint8), 0.0, 0.0, ())

    @property
    def visible(self) -> tuple[Lesion, ...]:
        """The lesions that can be seen at all."""
        volumes = zip(self.lesions, self.truth.volumes_ml, strict=True)
        return tuple(lesion for lesion, ml in volumes if ml >= MINIMUM_ML or lesion.kind == "scalp")

    @cached_property
    def findings(self) -> dict[str, float]:
        """Conspicuity of each finding that is present, measured on the rendered head."""
        found: dict[str, float] = {}
        for lesion in self.visible:
            bleed = "intracranial_hemorrhage" if lesion.kind in BLEEDS else None
            for label in (LABEL_OF_KIND.get(lesion.kind), bleed):
                if label is not None:
                    found[label] = max(found.get(label, 0.0), lesion.conspicuity)
        shift = abs(self.truth.shift_mm)
        if shift >= SHIFT_MM:
            found["midline_shift"] = min(1.0, (shift - SHIFT_MM) / 7)
        if self.truth.pushed_mm >= PUSH_MM:
            found["mass_effect"] = min(1.0, (self.truth.pushed_mm - PUSH_MM) / 11)
        return {label: round(found[label], 3) for label in LABELS if label in found}

    def images(self, kind: str, number: int) -> tuple[SeriesPlan, Iterator[FileDataset]]:
        """One series as CT Images, made as they are asked for."""
        rng = np.random.default_rng(np.random.SeedSequence([VERSION, self.seed, list(SERIES).index(kind)]))
        row = SERIES[kind]
        plan = SeriesPlan(kind, number, str(rng.choice(row.descriptions)), row.image_type, row.kernel, row.window)
        if row.plane == "lateral":
            hu, geometry = scanner.localizer(self.truth, self.scanner, self.size)
        else:
            geometry = self._geometry(kind, rng)
            hu = scanner.scan(self.truth, self.scanner, geometry, scanner.KERNELS[row.kernel], rng)
        slices = ct_image.images(
            self.header, plan, geometry, hu, key=self.key,
            tilt_deg=self.scanner.tilt_deg if row.plane == "axial" else 0.0,
            pad_outside=self.scanner.pad_outside and row.plane == "axial",
            contrast=self.body == "head" and self.head.contrast,
        )  # fmt: skip
        return plan, slices

    def _geometry(self, kind: str, rng: np.random.Generator) -> Geometry:
        row = SERIES[kind]
        spacing = max(row.spacing_mm, self.preset.thinnest_mm)
        if self.body != "head":
            wide = replace(self.scanner, field_mm=400.0, tilt_deg=0.0, table="flat", table_gap=40.0)
            return scanner.axial(wide, low=-130, high=130, spacing=5.0, thickness=5.0, size=self.size)
        top = self.head.height + self.head.bone_mm + self.head.scalp_mm
        if row.plane == "coronal":
            back = self.head.half_length + 12
            return scanner.coronal(self.scanner, low=-back, high=back, spacing=spacing, size=self.size)
        low, high = float(rng.uniform(-86, -68)), float(rng.uniform(top - 2, top + 12))
        return scanner.axial(self.scanner, low=low, high=high, spacing=spacing, thickness=spacing, size=self.size)

    def report(self) -> tuple[str, ...]:
        """The report's sentences."""
        rng = np.random.default_rng(np.random.SeedSequence([VERSION, self.seed, 1000]))
        if self.body != "head":
            return (f"{self.body.capitalize()} phantom.",)
        return reports.write(self, rng)

    def mask(self) -> LesionMask:
        """Where the lesions are, in patient coordinates."""
        return LesionMask.of(self.truth, self.scanner)


def kind_of(name: str) -> str:
    """The lesion kind for a kind or a label.

    Raises:
        ValueError: for a name that is neither.
    """
    if name in lesions.KINDS:
        return name
    for kind, label in LABEL_OF_KIND.items():
        if name == label:
            return kind
    raise ValueError(f"no such lesion: {name!r}; there are {', '.join(lesions.KINDS)}")


def write_study(
    out: Path,
    *,
    seed: int,
    lesions: Sequence[str] | None = None,
    series: Sequence[str] | None = None,
    size: int | None = None,
    body: str = "head",
    body_part: str | None = None,
    preset: str = "full",
    make: str = "usual",
    conspicuity: tuple[float, float] = (0.0, 1.0),
) -> PhantomStudy:
    """Writes a synthetic CT study into `out`: a folder a series, `study.json` and `lesions.npz`.

    The same arguments give the same bytes, UIDs included. Arguments as in `Examination`; `lesions=[]` is a
    normal head. An existing study of the same arguments is kept, another one is replaced.

    Raises:
        ValueError: for an unknown lesion, series or body.
    """
    exam = Examination(
        seed=seed, kinds=lesions, series=series, conspicuity=conspicuity, size=size, body=body,
        body_part=body_part, preset=preset, make=make,
    )  # fmt: skip
    done = read_study(out)
    if done is not None and done.parameters == exam.parameters:
        return done
    work = out.with_name(out.name + ".part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    records = tuple(_write_series(work, exam, kind, number) for number, kind in enumerate(exam.series, 1))
    exam.mask().save(work / "lesions.npz")
    study = _study(out, exam, records)
    (work / "study.json").write_text(json.dumps(study.row(), indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    work.rename(out)
    return study


def _write_series(work: Path, exam: Examination, kind: str, number: int) -> SeriesRecord:
    plan, slices = exam.images(kind, number)
    folder = work / f"{number}-{kind}"
    folder.mkdir()
    count = 0
    for count, image in enumerate(slices, 1):
        image.save_as(folder / f"{count:04}.dcm", enforce_file_format=True)
    return SeriesRecord(uid(exam.key, "series", kind), kind, plan.description, folder.name, count)


def _study(folder: Path, exam: Examination, records: tuple[SeriesRecord, ...]) -> PhantomStudy:
    found = exam.findings
    return PhantomStudy(
        folder=folder,
        study_instance_uid=str(exam.header.StudyInstanceUID),
        seed=exam.seed,
        body=exam.body,
        labels={label: label in found for label in LABELS},
        conspicuity=found,
        sentences=exam.report(),
        series=records,
        lesions=tuple(
            json.loads(json.dumps({**asdict(lesion), "volume_ml": round(volume, 2)}))
            for lesion, volume in zip(exam.lesions, exam.truth.volumes_ml, strict=True)
        ),
        shift_mm=round(exam.truth.shift_mm, 2),
        parameters=exam.parameters,
    )


def read_study(folder: Path) -> PhantomStudy | None:
    """A study that `write_study` finished, None where there is none."""
    path = folder / "study.json"
    if not path.is_file():
        return None
    row = json.loads(path.read_text())
    row.pop("report")
    row["folder"] = folder
    row["series"] = tuple(SeriesRecord(**record) for record in row["series"])
    row["sentences"], row["lesions"] = tuple(row["sentences"]), tuple(row["lesions"])
    return PhantomStudy(**row)
