import pytest
import torch
from tokenizers import Tokenizer

import parity
import tiny
from hlip_core.errors import InputError
from hlip_core.text import TextTower, load_tokenizer


def tower() -> TextTower:
    text = TextTower(bert=tiny.BERT, embed_dim=16, context_length=12).eval()
    text.load_state_dict(parity.filled(text.state_dict(), "sharp"))
    return text


def test_a_missing_tokenizer_is_a_clear_error(tmp_path):
    with pytest.raises(InputError, match="tokenizer folder"):
        tower()(["midline shift"])
    with pytest.raises(InputError, match=r"tokenizer\.json or vocab\.txt is needed"):
        tower().use_tokenizer(tmp_path)


def test_a_tokenizer_with_more_words_than_the_tower_is_an_error(tmp_path):
    tiny.write_tokenizer(tmp_path)
    small = TextTower(bert=tiny.BERT | {"vocab_size": 50}, embed_dim=16, context_length=12)
    with pytest.raises(InputError, match="tokens"):
        small.use_tokenizer(tmp_path)


def test_texts_begin_and_end_with_marks_and_are_padded_with_zero(tmp_path):
    text = tower()
    text.use_tokenizer(tiny.write_tokenizer(tmp_path))
    ids = text.tokenize(["Midline shift", "midline"])
    assert ids[0, 0] == ids[1, 0] == 2
    assert ids[0, -1] == 3
    assert ids[1].tolist() == [2, ids[0, 1], 3, 0]


def test_long_texts_are_cut_at_the_context(tmp_path):
    text = tower()
    text.use_tokenizer(tiny.write_tokenizer(tmp_path))
    ids = text.tokenize(["midline shift " * 20])
    assert ids.shape == (1, 12)
    assert ids[0, -1] == 3


def test_a_tokenizer_file_and_a_vocabulary_give_the_same(tmp_path):
    folder = tiny.write_tokenizer(tmp_path / "words")
    words = load_tokenizer(folder)
    (tmp_path / "file").mkdir()
    words.save(str(tmp_path / "file/tokenizer.json"))
    other = load_tokenizer(tmp_path / "file")
    assert isinstance(other, Tokenizer)
    assert other.encode("Acute infarct").ids == words.encode("Acute infarct").ids


def test_capitals_are_kept_where_the_tokenizer_says_so(tmp_path):
    folder = tiny.write_tokenizer(tmp_path)
    assert load_tokenizer(folder).encode("Midline").tokens == ["[CLS]", "midline", "[SEP]"]
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(folder).encode("Midline").tokens != ["[CLS]", "midline", "[SEP]"]


def test_the_vector_is_the_projected_first_token_and_padding_is_not_seen():
    text, ids = tower(), torch.tensor([[2, 9, 10, 3]])
    with torch.inference_mode():
        hidden = text.transformer(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        torch.testing.assert_close(text(ids), hidden[:, 0] @ text.proj.weight.T)
        padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], dim=1)
        torch.testing.assert_close(text(padded), text(ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("ids", [torch.tensor([2, 3]), torch.full((1, 13), 4), torch.zeros(1, 0, dtype=torch.long)])
def test_token_ids_of_a_wrong_shape_are_an_error(ids):
    with pytest.raises(InputError, match="token ids"):
        tower()(ids)


@pytest.mark.parametrize("texts", ["midline shift", []])
def test_texts_that_are_no_list_are_an_error(texts, tmp_path):
    text = tower()
    text.use_tokenizer(tiny.write_tokenizer(tmp_path))
    with pytest.raises(InputError, match="sequence of strings"):
        text(texts)
