"""Configurations of pre-training: those that come along, values put over them, and what is wrong."""

import math

import pytest

from hlip_core.errors import InputError
from small_runs import write_toml
from trainer.config import CONFIGS, load_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_configurations_that_come_along_describe_models(path):
    from trainer.start import architecture

    settings = load_config(path)
    assert settings.name == path.stem
    assert architecture(settings).encoder.depth == len(architecture(settings).encoder.levels)
    assert math.isfinite(sum(stage.lr for stage in settings.stages))


def test_a_value_can_be_put_over_the_files(cohort, tmp_path):
    file = write_toml(tmp_path / "run.toml", cohort)
    settings = load_config(file, ("stages.0.lr=0.5", "optimizer.precision=bf16", "data.mirror=false"))
    assert (settings.stages[0].lr, settings.optimizer.precision, settings.data.mirror) == (0.5, "bf16", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.batch_sice=3", "batch_sice"),
        ("optimizer.batch_size=1", "batch_size of 2"),
        ("loss.kind=triplet", "loss.kind"),
        ("model.lock_patches=true", "data.variants"),
        ("nonsense", "section.name=value"),
    ],
)
def test_a_wrong_setting_is_named(cohort, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_config(write_toml(tmp_path / "run.toml", cohort), (change,))


def test_a_missing_configuration_names_those_that_come_along(tmp_path):
    with pytest.raises(InputError, match="demo"):
        load_config(tmp_path / "none.toml")
