"""A bundle: everything that fixes what the model says, in one folder, each file held by its digest.

    config.json                   name, version, status, model, preprocessing, inference, provenance
    weights.safetensors           image tower, named as in the released checkpoints
    findings.toml                 the table of findings
    class_embeddings.safetensors  a vector for each finding: a worker needs no text tower
    calibration.json              a calibration for each finding that has one
    text.safetensors, tokenizer/  the text tower, where the bundle has one (to compute class embeddings again)
    MODEL_CARD.md                 for people
    digests.json                  SHA-256 of each of the other files

A bundle is never changed in place: a new folder is written beside it and takes its place by renaming.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hlip_core.assessment import (
    Assessment,
    FindingScore,
    Location,
    air_level,
    brightest_cell,
    order_scans,
    thresholds_digest,
)
from hlip_core.calibration import Calibration, calibrations_from_json
from hlip_core.errors import BundleError, DigestMismatch, InputError
from hlip_core.findings import FindingsTable
from hlip_core.preprocessing import Preprocessing
from hlip_core.windows import model_scans
from hlip_core.zero_shot import ClassEmbeddings

if TYPE_CHECKING:
    import torch

    from hlip_core.model import Hlip
    from hlip_core.relevance import Look
    from hlip_core.volume import PreparedScan

__all__ = ["Assessment", "Bundle", "FindingScore", "Location", "SiteThreshold", "Status", "load_bundle", "write_bundle"]

FORMAT = 1
CONFIG, DIGESTS, CARD = "config.json", "digests.json", "MODEL_CARD.md"
WEIGHTS, TEXT = "weights.safetensors", "text.safetensors"
FINDINGS, EMBEDDINGS, CALIBRATION = "findings.toml", "class_embeddings.safetensors", "calibration.json"
TOKENIZER = "tokenizer"
NEEDED = (CONFIG, WEIGHTS, FINDINGS, EMBEDDINGS, CALIBRATION, CARD)

Status = Literal["untrained", "phantom", "trained"]
SiteThreshold = float | Literal["off"]
"""What a site sets for a finding; "off": it is not assessed, whatever the calibration says."""
PRECISIONS = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}


class Bundle:
    """A bundle whose files are what its digests say. Use :func:`load_bundle`."""

    def __init__(self, path: Path, digests: Mapping[str, str], config: Mapping[str, Any]) -> None:
        self.path = path
        self.digests = dict(digests)
        self.config = dict(config)
        self.name: str = config["name"]
        self.version: str = config["version"]
        self.status: Status = config["status"]
        self.max_scans: int = config["max_scans"]
        """Most scans (series x windows) of a study."""
        self.precision: str = config["inference"]["precision"]
        self.drop_air: bool = config["inference"]["drop_air"]
        self.preprocessing = Preprocessing.from_dict(config["preprocessing"])
        self.findings = FindingsTable.from_toml(path / FINDINGS)
        self.embeddings = ClassEmbeddings.from_bytes((path / EMBEDDINGS).read_bytes())
        self.calibrations: dict[str, Calibration] = calibrations_from_json((path / CALIBRATION).read_bytes())
        self._models: dict[tuple[str, bool], Hlip] = {}
        self._check()

    def _check(self) -> None:
        problems = {
            f"precision {self.precision!r}": self.precision not in PRECISIONS,
            f"status {self.status!r}": self.status not in ("untrained", "phantom", "trained"),
            "class embeddings of other findings": set(self.embeddings.positive) != set(self.findings.labels),
            "calibrations of other class embeddings": any(
                label not in self.embeddings.positive or row.class_digest != self.embeddings.digest(label)
                for label, row in self.calibrations.items()
            ),
        }
        if wrong := [problem for problem, holds in problems.items() if holds]:
            raise BundleError(f"bundle {self.name!r}: {', '.join(wrong)}")

    @property
    def weights_digest(self) -> str:
        """SHA-256 (hex) of the image tower's file."""
        return self.digests[WEIGHTS]

    @cached_property
    def prompts_digest(self) -> str:
        """SHA-256 (hex) of the table of findings and the class embeddings."""
        return hashlib.sha256(f"{self.findings.digest}\n{self.digests[EMBEDDINGS]}".encode()).hexdigest()

    @property
    def calibration_digest(self) -> str:
        """SHA-256 (hex) of the calibrations."""
        return self.digests[CALIBRATION]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the digests of all files."""
        return hashlib.sha256((self.path / DIGESTS).read_bytes()).hexdigest()

    @cached_property
    def encoder_digest(self) -> str:
        """SHA-256 (hex) of all that fixes the vector of given images: vectors with the same one may be compared.

        Prompts, calibration and thresholds are no part of it: a change of those needs no image again.
        """
        fixed = {
            "weights": self.weights_digest,
            "encoder": self.config["model"]["encoder"],
            "preprocessing": self.preprocessing.digest,
            "inference": self.config["inference"],
            "max_scans": self.max_scans,
        }
        return hashlib.sha256(json.dumps(fixed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def card(self) -> str:
        """The model card, Markdown."""
        return (self.path / CARD).read_text(encoding="utf-8")

    @property
    def provenance(self) -> dict[str, str]:
        """Data, licence, intended use, ... as the maker of the bundle wrote them."""
        return dict(self.config["provenance"])

    def model(self, device: str = "cpu", *, text: bool = False) -> Hlip:
        """The model in eval mode on a device, loaded once; the text tower only with ``text``.

        Raises :class:`BundleError` for weights that cannot be read or do not fit, or when there is no text tower.
        """
        if (device, text) not in self._models:
            from hlip_core.checkpoint import load_model  # torch: only where the model runs

            self._models[device, text] = load_model(self, text=text).to(device).eval()
        return self._models[device, text]

    def assess(
        self,
        scans: Sequence[PreparedScan],
        *,
        thresholds: Mapping[str, SiteThreshold] | None = None,
        device: str = "cpu",
    ) -> Assessment:
        """What the model says about a study.

        ``scans`` are its prepared series in any order, ``thresholds`` the site's own by label: on the probability
        of a calibrated finding, on the score of another. The same input gives the same bytes.

        Raises :class:`InputError` for no scans, too many, scans of another preprocessing, or unknown labels.
        """
        limits = self.thresholds(thresholds or {})
        ordered = order_scans(scans)
        look = self._look(ordered, device)
        embedding = look.vector.cpu().numpy()
        findings = [self._score(label, embedding, limits[label], look, ordered) for label in self.findings.labels]
        return Assessment(embedding, tuple(findings), thresholds_digest(limits), device)

    def embed(self, scans: Sequence[PreparedScan], *, device: str = "cpu") -> np.ndarray:
        """[E] float32 of unit length: the vector of scans as :meth:`assess` gives it, without findings."""
        return self._look(order_scans(scans), device).vector.cpu().numpy()

    def _look(self, ordered: Sequence[PreparedScan], device: str) -> Look:
        import torch

        from hlip_core.relevance import Look

        images = torch.from_numpy(self.model_scans(ordered)).to(device)
        with self.autocast(device):
            return Look(self.model(device).visual, images, air=self.air)

    @property
    def air(self) -> float | None:
        """What :meth:`hlip_core.encoder.Encoder.forward` takes as ``air``."""
        return air_level(self.preprocessing) if self.drop_air else None

    def autocast(self, device: str) -> torch.autocast:
        """The precision in which the bundle runs, as a context."""
        import torch

        name = PRECISIONS[self.precision]
        dtype = getattr(torch, name) if name else torch.bfloat16
        return torch.autocast(torch.device(device).type, dtype=dtype, enabled=name is not None)

    def model_scans(self, scans: Sequence[PreparedScan]) -> np.ndarray:
        """What the encoder sees of ordered prepared scans: [N, 1, D, H, W] float32, N = series x windows."""
        count = len(scans) * len(self.preprocessing.windows)
        if not 0 < count <= self.max_scans:
            raise InputError(f"{count} model scans; this bundle takes 1 to {self.max_scans}")
        return np.concatenate([model_scans(scan, self.preprocessing) for scan in scans])

    def thresholds(self, site: Mapping[str, SiteThreshold]) -> dict[str, float | None]:
        """The threshold of each finding: the site's, else the calibration's, else None.

        Raises :class:`InputError` for labels that the bundle does not have, and for what no probability reaches.
        """
        if unknown := set(site) - set(self.findings.labels):
            raise InputError(f"thresholds for findings that the bundle does not have: {', '.join(sorted(unknown))}")
        if beyond := [
            label for label, limit in site.items() if limit != "off" and limit > 1 and label in self.calibrations
        ]:
            raise InputError(
                f'no probability is above 1; write "off" for what is not to be assessed: {", ".join(beyond)}'
            )
        own = {label: row.threshold for label, row in self.calibrations.items()}
        chosen = {label: site.get(label, own.get(label)) for label in self.findings.labels}
        return {label: None if limit == "off" else limit for label, limit in chosen.items()}

    def _score(
        self, label: str, embedding: np.ndarray, threshold: float | None, look: Look, scans: Sequence[PreparedScan]
    ) -> FindingScore:
        score = self.embeddings.score(embedding, label)
        calibration = self.calibrations.get(label)
        probability = None if calibration is None else calibration.probability(score)
        positive = threshold is not None and (score if probability is None else probability) >= threshold
        location = where = None
        if positive:
            relevance = look.relevance(self.embeddings.direction(label))
            location = brightest_cell(relevance, scans, self.preprocessing, look.cell)
            if location is not None:
                of_series = relevance.reshape(len(scans), -1, *relevance.shape[1:]).max(1)
                where = of_series[[scan.series_instance_uid for scan in scans].index(location.series_instance_uid)]
        return FindingScore(self.findings[label], score, probability, threshold, positive, location, where)


def load_bundle(path: str | Path) -> Bundle:
    """Open a bundle and check every file against its digest; the model itself is loaded when it is first used.

    Raises :class:`DigestMismatch` for a file that changed, :class:`BundleError` for what is no bundle.
    """
    path = Path(path)
    digests = _read_json(path / DIGESTS)
    if missing := [name for name in NEEDED if name not in digests]:
        raise BundleError(f"{path.name}: the digests do not name {', '.join(missing)}")
    for name, digest in digests.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{path.name}: the digests name a file outside of the bundle")
        if _file_digest(path / name) != digest:
            raise DigestMismatch(f"{path.name}: {name} is not the file that the digests name")
    config = _read_json(path / CONFIG)
    if config.get("format") != FORMAT:
        raise BundleError(f"{path.name}: format {config.get('format')!r}, this program reads {FORMAT}")
    try:
        return Bundle(path, digests, config)
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise BundleError(f"{path.name}: {error}") from error


def write_bundle(out: str | Path, files: Mapping[str, bytes | Path], *, replace: bool = False) -> Path:
    """Write a bundle and its digests; a ``Path`` is copied. The folder appears whole or not at all.

    Raises :class:`BundleError` when ``out`` exists (unless ``replace``), when a file is missing, or when the result
    does not load.
    """
    out = Path(out)
    if out.exists() and not replace:
        raise BundleError(f"{out} exists already")
    if missing := [name for name in NEEDED if name not in files]:
        raise BundleError(f"a bundle needs {', '.join(missing)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    new, old = work / "new", work / "old"
    try:
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                (new / name).write_bytes(content)
            else:
                shutil.copyfile(content, new / name)
        digests = {name: _file_digest(new / name) for name in sorted(files)}
        (new / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
        load_bundle(new)
        if out.exists():
            out.rename(old)
        new.rename(out)
    finally:
        shutil.rmtree(work)
    return out


def bundle_files(bundle: Bundle) -> dict[str, bytes | Path]:
    """All files of a bundle, to write another one that differs in some."""
    return {name: bundle.path / name for name in bundle.digests}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path.parent.name} is no bundle: {path.name} cannot be read") from error
    except ValueError as error:
        raise BundleError(f"{path.parent.name}: {path.name} is not JSON") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path.parent.name}: {path.name} is not a table")
    return values


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path.parent.name}: {path.name} cannot be read") from error


def write_untrained_bundle(out: str | Path) -> Path:
    """Write the small bundle of random numbers, see :mod:`hlip_core.untrained`."""
    from hlip_core import untrained

    return untrained.write_untrained_bundle(Path(out))
