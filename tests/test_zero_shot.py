import dataclasses
import zlib

import numpy as np
import pytest

from hlip_core.errors import InputError
from hlip_core.findings import FindingsTable
from hlip_core.zero_shot import ClassEmbeddings, build_zero_shot_classifier, class_vector


def encode(texts) -> np.ndarray:
    """A vector of its own, of any length, for each text."""
    return np.stack([np.random.default_rng(zlib.crc32(text.encode())).normal(0, 5, 8) for text in texts])


def test_the_class_vector_is_the_unit_mean_of_unit_vectors():
    texts = ["subdural hematoma", "subdural hemorrhage", "an extra-axial collection"]
    unit = [v / np.linalg.norm(v) for v in encode(texts)]
    expected = np.mean(unit, axis=0)
    np.testing.assert_allclose(class_vector(encode, texts), expected / np.linalg.norm(expected), atol=1e-6)


def test_texts_that_cancel_out_are_an_error():
    with pytest.raises(InputError, match="no common direction"):
        class_vector(lambda texts: np.array([[1.0, 0], [-1.0, 0]]), ["a", "b"])


def test_every_prompt_goes_into_every_template():
    table = FindingsTable.from_toml()
    finding = table["subdural_hemorrhage"]
    texts = [template.format(prompt) for prompt in finding.prompts for template in table.templates]
    assert table.texts(finding.prompts) == texts
    embeddings = build_zero_shot_classifier(encode, table)
    np.testing.assert_array_equal(embeddings.positive["subdural_hemorrhage"], class_vector(encode, texts))
    assert not embeddings.negative


def test_the_score_is_the_cosine_less_that_of_the_negative_prompts():
    table = FindingsTable.from_toml()
    denied = dataclasses.replace(table.findings[0], negative_prompts=("no hemorrhage",), parent=None)
    table = dataclasses.replace(table, findings=(denied, *table.findings[1:]))
    embeddings = build_zero_shot_classifier(encode, table)
    study = class_vector(encode, ["a study"])
    first, second = table.labels[:2]
    assert embeddings.score(study, second) == pytest.approx(float(study @ embeddings.positive[second]), abs=1e-6)
    cosines = float(study @ embeddings.positive[first]), float(study @ embeddings.negative[first])
    assert embeddings.score(study, first) == pytest.approx(cosines[0] - cosines[1], abs=1e-6)


def test_class_embeddings_survive_a_file():
    embeddings = ClassEmbeddings({"a": class_vector(encode, ["a"])}, {"a": class_vector(encode, ["no a"])})
    again = ClassEmbeddings.from_bytes(embeddings.to_bytes())
    np.testing.assert_array_equal(again.direction("a"), embeddings.direction("a"))
    assert again.digest("a") == embeddings.digest("a")
    assert again.to_bytes() == embeddings.to_bytes()
