import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

import tiny
from hlip_core.bundle import Bundle, load_bundle
from hlip_core.errors import CheckpointMismatch, DigestMismatch, InputError
from hlip_core.findings import DEFAULT
from plugin.cli_model import app
from plugin.labelled import read_truth

LABEL = "midline_shift"


def run(*arguments: object, fails: type[Exception] | None = None) -> Result:
    """Run `hlip model`; an error reaches the command's border as an exception."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if fails is None:
        assert result.exit_code == 0, result.output
    else:
        assert isinstance(result.exception, fails)
    return result


@pytest.fixture
def folder(tmp_path) -> Path:
    return tiny.write_bundle(tmp_path / "tiny", provenance={"licence": "CC0"})


@pytest.fixture
def words(tmp_path) -> Path:
    return tiny.write_tokenizer(tmp_path / "words")


def checkpoint(path: Path) -> Path:
    state = {f"module.{name}": value for name, value in tiny.model().state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state, "optimizer": {}}, path)
    return path


def config(path: Path) -> Path:
    path.write_text(json.dumps(tiny.CONFIG.to_dict()))
    return path


# ---- import, list, show ------------------------------------------------------------------------------------


def test_import_makes_a_bundle_and_shows_it(tmp_path, words):
    released = checkpoint(tmp_path / "epoch_1.pt")
    result = run(
        *("import", released, "--model", config(tmp_path / "c.json"), "--tokenizer", words, "--out", tmp_path / "new"),
        *("--licence", "CC-BY-NC", "--data", "220 000 studies", "--name", "paper"),
    )
    bundle = load_bundle(tmp_path / "new")
    assert (bundle.name, bundle.status, bundle.precision, bundle.drop_air) == ("paper", "trained", "fp32", False)
    assert bundle.provenance["licence"] == "CC-BY-NC"
    assert "220 000 studies" in bundle.card
    assert bundle.weights_digest in result.output


def test_import_chooses_speed_only_when_asked(tmp_path, words):
    released, model = checkpoint(tmp_path / "epoch_1.pt"), config(tmp_path / "c.json")
    arguments = ["import", released, "--model", model, "--tokenizer", words, "--out", tmp_path / "new"]
    run(*arguments, "--precision", "bf16", "--drop-air")
    assert load_bundle(tmp_path / "new").precision == "bf16"
    assert load_bundle(tmp_path / "new").drop_air


def test_import_lists_every_parameter_that_does_not_fit(tmp_path, words):
    released = checkpoint(tmp_path / "epoch_1.pt")
    arguments = [
        "--model",
        config(
            tmp_path / "c.json",
        ),
        "--tokenizer",
        words,
        "--out",
        tmp_path / "new",
    ]
    other = json.loads((tmp_path / "c.json").read_text())
    other["encoder"] |= {"depth": 4, "scan_blocks": [0, 1, 2], "study_blocks": [3]}
    (tmp_path / "c.json").write_text(json.dumps(other))
    result = run("import", released, *arguments, fails=CheckpointMismatch)
    assert result.output.count("missing: visual.trunk.blocks.3.") == 12
    assert not (tmp_path / "new").exists()


def test_list_names_the_models_that_can_be_imported():
    output = run("list").output
    assert "vit_base_multiscan_h2_token1176" in output
    assert "not verified" in output


def test_list_names_the_bundles_of_a_folder(folder):
    assert "tiny" in run("list", folder.parent).output


def test_show_prints_digests_and_what_is_a_score_only(folder):
    output = run("show", folder).output
    bundle = load_bundle(folder)
    for value in (bundle.digest, bundle.weights_digest, bundle.prompts_digest, "CC0", LABEL):
        assert value in output
    assert output.count("score only") == 11


def test_show_speaks_json(folder):
    facts = json.loads(run("show", folder, "--json").output)
    assert facts["digest"] == load_bundle(folder).digest
    assert facts["findings"][0]["code"] == ["1386000", "SCT", "Intracranial hemorrhage"]
    assert facts["findings"][0]["calibration"] is None


def test_show_refuses_a_changed_bundle(folder):
    (folder / "MODEL_CARD.md").write_text("better than ever")
    run("show", folder, fails=DigestMismatch)


# ---- prompts -----------------------------------------------------------------------------------------------


def test_prompts_replaces_the_findings_in_place_or_elsewhere(folder, tmp_path):
    old, table = load_bundle(folder), tmp_path / "findings.toml"
    table.write_text(DEFAULT.read_text().replace('"skull fracture"', '"fracture of the vault"'))
    run("prompts", folder, table, "--out", tmp_path / "new")
    assert load_bundle(folder).digest == old.digest
    run("prompts", folder, table)
    assert load_bundle(folder).digest == load_bundle(tmp_path / "new").digest != old.digest


# ---- calibrate ---------------------------------------------------------------------------------------------


def labelled(bundle: Bundle, folder: Path, *, digest: str | None = None) -> tuple[Path, Path]:
    """Truth (CSV) and vectors of 60 studies whose scores for one finding say something."""
    random, direction = np.random.default_rng(0), bundle.embeddings.positive[LABEL]
    vectors = {}
    with (folder / "truth.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["study", LABEL, "skull_fracture"])
        for i in range(60):
            vector = random.normal(0, 0.3, len(direction)) + (0.4 if i % 3 == 0 else 0.0) * direction
            vectors[f"s{i}"] = (vector / np.linalg.norm(vector)).astype(np.float32)
            table.writerow([f"s{i}", int(i % 3 == 0), 1 if i < 2 else ""])
    save_file(vectors, folder / "v.safetensors", metadata={"encoder_digest": digest or bundle.encoder_digest})
    return folder / "truth.csv", folder / "v.safetensors"


def test_calibrate_turns_scores_into_probabilities_with_a_threshold_and_a_diagram(folder, tmp_path):
    truth, vectors = labelled(load_bundle(folder), tmp_path)
    output = run(
        "calibrate", folder, truth, "--embeddings", vectors, "--sensitivity", 0.9, "--out", tmp_path / "new"
    ).output
    bundle = load_bundle(tmp_path / "new")
    assert bundle.calibrations.keys() == {LABEL}
    assert bundle.calibrations[LABEL].evidence["sensitivity"][0] >= 0.9
    assert (bundle.path / f"reliability/{LABEL}.png").read_bytes().startswith(b"\x89PNG")
    assert "skull_fracture stays a score: 2 positive and 0 negative studies" in output
    score = next(s for s in bundle.assess([tiny.scan(1)]).findings if s.finding.label == LABEL)
    assert score.probability is not None
    assert score.threshold == bundle.calibrations[LABEL].threshold


def test_calibrating_twice_gives_the_same_bundle(folder, tmp_path):
    truth, vectors = labelled(load_bundle(folder), tmp_path)
    digests = []
    for _ in range(2):
        run("calibrate", folder, truth, "--embeddings", vectors, "--method", "isotonic")
        digests.append(load_bundle(folder).digest)
    assert digests[0] == digests[1]


def test_vectors_of_another_encoder_are_refused(folder, tmp_path):
    bundle = load_bundle(folder)
    for digest in ("0", bundle.weights_digest):  # the same weights, run in another way, make other vectors
        truth, vectors = labelled(bundle, tmp_path, digest=digest)
        run("calibrate", folder, truth, "--embeddings", vectors, fails=InputError)


def test_a_bundle_that_cannot_be_calibrated_stays_as_it_is(folder, tmp_path):
    digest = load_bundle(folder).digest
    truth, vectors = labelled(load_bundle(folder), tmp_path)
    truth.write_text("study,midline_shift\ns0,1\ns1,0\n")
    run("calibrate", folder, truth, "--embeddings", vectors, fails=InputError)
    assert load_bundle(folder).digest == digest
    run("calibrate", folder, truth, fails=InputError)


def test_studies_can_be_dicom(shared, folder, tmp_path):
    (tmp_path / "truth.csv").write_text("study,midline_shift\nge_hispeed_human_tilt_vargap,1\n")
    studies, vectors = shared / "data/ct", tmp_path / "v.safetensors"
    run("calibrate", folder, tmp_path / "truth.csv", "--studies", studies, "--embeddings", vectors, fails=InputError)
    assert vectors.exists()


def test_truth_comes_from_a_table_or_from_a_manifest(tmp_path):
    (tmp_path / "t.csv").write_text("study,a,b\none,1,\ntwo,0.0,1.0\n", encoding="utf-8-sig")
    assert read_truth(tmp_path / "t.csv") == {"one": {"a": True}, "two": {"a": False, "b": True}}
    (tmp_path / "t.jsonl").write_text('{"folder": "one", "labels": {"a": 1, "b": false}}\n')
    assert read_truth(tmp_path / "t.jsonl") == {"one": {"a": True, "b": False}}


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.csv", "name,a\none,1\n"), ("t.csv", "study,a\none,yes\n"), ("t.csv", ""),
     ("t.csv", "study,a\none,1\none,0\n"), ("t.csv", "study,a\none\n"),
     ("t.jsonl", '{"folder": "one"}'), ("t.jsonl", '["one"]'), ("t.jsonl", "study,a"),
     ("t.jsonl", '{"folder": "one", "labels": {"a": "perhaps"}}'), ("t.jsonl", "[" * 100_000)],
)  # fmt: skip
def test_truth_that_cannot_be_meant_is_an_error(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError):
        read_truth(tmp_path / name)
