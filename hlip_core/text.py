"""The text tower: a BERT that turns sentences into vectors, from local files only.

Letters: S sentences, L tokens of the longest of them, C width of BERT, E width of the shared space.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from hlip_core.encoder import Head
from hlip_core.errors import InputError

__all__ = ["TOKENIZER_FILES", "TextTower", "load_tokenizer"]

PAD = 0
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
"""The files of a tokenizer folder that are read."""


class TextTower(nn.Module):
    """BERT without its pooler; the text's vector is the projected last hidden state of the first token.

    ``bert`` are fields of transformers' BertConfig; without any it is BERT base, as published. Texts are cut after
    ``context_length`` tokens. ``report_head`` adds a second projection, for whole reports.
    """

    def __init__(self, *, bert: dict[str, Any], embed_dim: int, context_length: int, report_head: bool = False) -> None:
        super().__init__()
        config = BertConfig(**bert)
        self.context_length = min(context_length, config.max_position_embeddings)
        self.transformer = BertModel(config, add_pooling_layer=False)
        self.proj = nn.Linear(config.hidden_size, embed_dim, bias=False)
        if report_head:
            self.report_proj = nn.Linear(config.hidden_size, embed_dim, bias=False)
        self.tokenizer: Tokenizer | None = None

    def forward(self, texts: Sequence[str] | Tensor, *, head: Head = "sentence") -> Tensor:
        """Texts, or their token ids [S, L] padded with 0, to vectors [S, E] (not of unit length)."""
        ids = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        if ids.ndim != 2 or not 0 < ids.shape[1] <= self.context_length:
            raise InputError(f"token ids must be [S, 1..{self.context_length}], got {tuple(ids.shape)}")
        ids = ids.to(self.proj.weight.device)
        hidden = self.transformer(input_ids=ids, attention_mask=(ids != PAD).long()).last_hidden_state  # [s, l, c]
        if head == "sentence":
            return self.proj(hidden[:, 0])
        if not hasattr(self, "report_proj"):
            raise InputError("this model has no report head")
        return self.report_proj(hidden[:, 0])

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [S, L], padded to the longest text. Raises :class:`InputError` when there is no tokenizer."""
        if self.tokenizer is None:
            raise InputError("texts need a tokenizer: give the model's tokenizer folder (vocab.txt or tokenizer.json)")
        if isinstance(texts, str) or not texts:
            raise InputError("texts must be a sequence of strings, not empty")
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        ids = torch.full((len(rows), max(map(len, rows))), PAD)
        for row, values in zip(ids, rows, strict=True):
            row[: len(values)] = torch.tensor(values)
        return ids

    def use_tokenizer(self, folder: str | Path) -> None:
        """Take the tokenizer of a local folder. Raises :class:`InputError` when there is none or it does not fit."""
        tokenizer = load_tokenizer(folder)
        rows = self.transformer.config.vocab_size
        if tokenizer.get_vocab_size() > rows:
            raise InputError(f"the tokenizer knows {tokenizer.get_vocab_size()} tokens, the text tower {rows}")
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.context_length)
        self.tokenizer = tokenizer


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder with ``tokenizer.json`` or a BERT ``vocab.txt``; nothing is ever downloaded."""
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    if not (folder / "vocab.txt").is_file():
        raise InputError(f"no tokenizer in {folder}: tokenizer.json or vocab.txt is needed")
    options = folder / "tokenizer_config.json"
    lowercase = json.loads(options.read_text()).get("do_lower_case", True) if options.is_file() else True
    words = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lowercase)
    return Tokenizer.from_str(words.to_str())
