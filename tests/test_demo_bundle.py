"""The bundle that comes along: small, honest about what it is, and better than chance on phantoms it never saw."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

import hlip_core
from hlip_core.bundle import Bundle, load_bundle
from hlip_core.errors import Refused
from hlip_core.prepared import PreparedScan
from hlip_core.volume import prepare
from plugin.bootstrap import Plugin
from plugin.search.words import Words
from plugin.settings import Settings
from plugin.web.pages import model_line
from trainer.evaluation.pointing import NEAR_MM, patient_point
from trainer.phantom.masks import LesionMask
from trainer.phantom.study import write_study

FOLDER = Path(hlip_core.__file__).with_name("demo")
EASY = (0.9, 1.0)
EPIDURAL = "epidural_hemorrhage"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(FOLDER)


@pytest.fixture(scope="module")
def vectors(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    """Unit vectors of some phantoms, by their lesion ("": none); seeds and make are of no training study."""
    folder, found = tmp_path_factory.mktemp("phantoms"), {}
    for lesion in ("", "subdural", "epidural"):
        found[lesion] = []
        for seed in range(6):
            study = write_study(
                folder / f"{lesion}{seed}", seed=7_000_000 + seed, lesions=[lesion] if lesion else [], series=["thick"],
                preset="small", make="other", conspicuity=EASY,
            )  # fmt: skip
            found[lesion].append(bundle.embed([prepared(study.folder, bundle)]))
    return found


def prepared(folder: Path, bundle: Bundle) -> PreparedScan:
    return prepare([pydicom.dcmread(path) for path in folder.glob("*/*.dcm")], bundle.preprocessing)


def test_it_is_what_a_plugin_takes_when_nothing_is_said(tmp_path: Path) -> None:
    plugin = Plugin(Settings(spool={"folder": tmp_path}))
    assert plugin.settings.model.bundle == "demo" and plugin.bundle.path == FOLDER
    assert plugin.holds_results, "results of a phantom model leave the machine only where a setting lets them"


def test_the_page_knows_what_kind_of_model_it_is() -> None:
    line = model_line(Settings().model.bundle)
    assert (line.name, line.status, line.headline) == ("demo", "phantom", "MODEL TRAINED ON PHANTOMS.")
    assert "never seen a patient" in line.sentence


def test_it_says_what_it_was_trained_on(bundle: Bundle) -> None:
    assert (bundle.name, bundle.status) == ("demo", "phantom")
    assert "synthetic phantoms" in bundle.card and "knows nothing of patients" in bundle.card
    assert "pretrain" in bundle.config["provenance"]["training"]


def test_it_is_small(bundle: Bundle) -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 30e6


def test_it_tells_blood_on_the_brain_from_none(bundle: Bundle, vectors: dict[str, list[np.ndarray]]) -> None:
    classes = bundle.embeddings

    def scores(lesion: str, label: str) -> np.ndarray:
        return np.array([vector @ classes.positive[label] for vector in vectors[lesion]])

    for lesion, label in (("subdural", "subdural_hemorrhage"), ("epidural", "epidural_hemorrhage")):
        above = scores(lesion, label)[:, None] > scores("", label)
        assert above.mean() >= 0.8, label


def test_free_words_find_it_too(bundle: Bundle, vectors: dict[str, list[np.ndarray]]) -> None:
    words = Words(bundle)
    bleeding, normal = words.vector("acute subdural hematoma"), words.vector("no acute intracranial hemorrhage")
    sick = np.array([vector @ (bleeding - normal) for vector in vectors["subdural"]])
    well = np.array([vector @ (bleeding - normal) for vector in vectors[""]])
    assert (sick[:, None] > well).mean() >= 0.8


def test_its_point_lies_at_the_lesion(bundle: Bundle, tmp_path: Path) -> None:
    near = []
    for seed in range(6):
        study = write_study(
            tmp_path / str(seed), seed=7_100_000 + seed, lesions=["epidural"], series=["thick"], preset="small",
            make="other", conspicuity=EASY,
        )  # fmt: skip
        headers = {str(header.SOPInstanceUID): header for header in map(pydicom.dcmread, study.folder.glob("*/*.dcm"))}
        (at,) = [
            finding.location
            for finding in bundle.assess([prepared(study.folder, bundle)], thresholds={EPIDURAL: -1.0}).findings
            if finding.finding.label == EPIDURAL
        ]
        assert at is not None, "a finding that is positive has a place"
        point = patient_point(headers[at.source.sop_instance_uid], at.source)
        near.append(LesionMask.load(study.folder / "lesions.npz").distance(EPIDURAL, point) <= NEAR_MM)
    assert sum(near) >= 4  # a point at random: 0.1 of them


def test_a_chest_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    study = write_study(tmp_path / "chest", seed=1, body="chest", preset="tiny")
    with pytest.raises(Refused):
        prepared(study.folder, bundle)
