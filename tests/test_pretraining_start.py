"""What a run starts from: a learnt vocabulary, whitened patches, towers that are spread."""

import numpy as np
import pytest
import torch

from small_runs import config
from trainer.dataset import Studies
from trainer.start import new_model, tokenizer_of, vocabulary

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_learnt_vocabulary_is_always_the_same_and_knows_endings():
    texts = ["An infarct.", "Acute infarction of the pons.", "infarct infarct", "Zebra"]
    found = vocabulary(texts, 300)
    assert found == vocabulary(iter(texts), 300) and len(found) == len(set(found))
    assert {"infarct", "##ion", "infarction", "zebra", "##q", "."} <= set(found)
    assert found[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_whitened_patches_have_uncorrelated_channels(cohort, tmp_path):
    settings = config(cohort, model={"whiten_patches": 4000}, data={"mirror": False, "jitter": False})
    studies = Studies(settings)
    trunk = new_model(settings, studies, tokenizer_of(settings, studies, tmp_path)).visual.trunk
    voxels = trunk.patch_embed.cut(studies.sample(0, 0, settings.stages[0]).images.float()).flatten(0, 1)
    tokens = trunk.patch_embed(voxels[(voxels > -1.9).float().mean(1) > 0.5]).detach()
    assert 0.1 < tokens.std() < 1.5
    correlation = np.corrcoef(tokens.numpy().T) - np.eye(tokens.shape[1])
    assert np.abs(correlation).mean() < 0.35


def test_a_spread_start_gives_studies_and_sentences_different_vectors(cohort, tmp_path):
    likeness = {}
    for spread in (False, True):
        settings = config(cohort, model={"spread": spread}, data={"mirror": False, "jitter": False})
        studies = Studies(settings)
        model = new_model(settings, studies, tokenizer_of(settings, studies, tmp_path)).eval()
        images = [studies.sample(0, i, settings.stages[0]).images.float() for i in range(len(studies.train))]
        with torch.inference_mode():
            vectors = {"image": model.encode_image(images), "text": model.encode_text(sorted(set(studies.sentences)))}
        for tower, found in vectors.items():
            likeness[tower, spread] = (found @ found.T).mean().item()
    for tower in ("image", "text"):
        assert likeness[tower, True] < 0.2 < 0.5 < likeness[tower, False]
