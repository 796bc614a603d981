"""How a run's model starts: towers, vocabulary, weights that the user supplies, what is locked."""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from hlip_core.architectures import ENCODERS, EncoderConfig
from hlip_core.checkpoint import load_strict, read_checkpoint
from hlip_core.encoder import Encoder
from hlip_core.errors import InputError
from hlip_core.initialisation import convert_mae
from hlip_core.model import Hlip, HlipConfig, TextConfig
from trainer.config import Config
from trainer.dataset import Studies

__all__ = ["architecture", "new_model", "tokenizer_of"]

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LOGIT_SCALE = {"clip": 1 / 0.07, "siglip": 10.0}
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MIN_STEM = 4
"""Fewest letters of a word that a longer one may go on."""
ENDINGS = 60
WHITENING_STUDIES = 96
"""Studies from which the patches of a whitening are taken."""
SPREAD_STUDIES = 256
SPREAD_SENTENCES = 2000
"""What the spread of features is taken from."""
WHITENED = 0.5
"""Standard deviation of a whitened channel: about that of the position code."""


def tokenizer_of(config: Config, studies: Studies, folder: Path) -> Path:
    """The tokenizer's folder: as configured, or learnt from the training reports into the run's own folder."""
    if config.model.tokenizer is not None:
        return config.model.tokenizer
    own = folder / "tokenizer"
    if not (own / "vocab.txt").is_file():
        own.mkdir(parents=True, exist_ok=True)
        part = own / f"vocab-{uuid.uuid4().hex}.part"  # each process of a run writes the same words
        part.write_text("\n".join(vocabulary(studies.sentences, config.model.vocabulary)) + "\n", encoding="utf-8")
        part.replace(own / "vocab.txt")
    return own


def vocabulary(texts: Iterable[str], size: int) -> list[str]:
    """WordPiece entries: BERT's marks, single characters, the most frequent words, and endings of words by which a
    longer word goes on ("infarct" + "##ion"). The same texts give the same list.
    """
    normalise, cut = BertNormalizer(lowercase=True), BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in cut.pre_tokenize_str(normalise.normalize_str(text)))
    characters = sorted(
        {character for word in counts for character in word} | set("abcdefghijklmnopqrstuvwxyz0123456789")
    )
    endings: Counter[str] = Counter()
    for word in counts:
        stem = max((word[:end] for end in range(MIN_STEM, len(word)) if word[:end] in counts), key=len, default="")
        if stem:
            endings["##" + word[len(stem) :]] += 1
    fixed = [*MARKS, *characters, *(f"##{character}" for character in characters)]
    ranked = [*_ranked(endings)[:ENDINGS], *_ranked(counts)]
    return list(dict.fromkeys([*fixed, *ranked]))[:size]


def _ranked(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda entry: (-counts[entry], entry))


def architecture(config: Config) -> HlipConfig:
    """The shape of both towers.

    Raises:
        InputError: the configuration does not describe a model.
    """
    given = config.model
    if isinstance(given.encoder, str) and given.encoder not in ENCODERS:
        raise InputError(f"model.encoder: no published encoder {given.encoder!r}; there are {', '.join(ENCODERS)}")
    encoder = ENCODERS[given.encoder] if isinstance(given.encoder, str) else EncoderConfig(**given.encoder)
    if config.loss.text != "sentence" and not encoder.num_registers:
        raise InputError(f"loss.text = {config.loss.text!r} needs an encoder with a register: num_registers = 1")
    width = given.text.get("hidden_size", 768)
    start = {"initializer_range": 0.02 * math.sqrt(768 / width)}  # as the encoder's: narrower towers start wider
    text = TextConfig(bert=NO_DROPOUT | start | given.text, context_length=given.context_length)
    return HlipConfig(encoder=encoder, text=text, embed_dim=given.embed_dim)


def new_model(config: Config, studies: Studies, tokenizer: Path) -> Hlip:
    """The model before its first step: random (by the run's seed), or from what the configuration names.

    Raises:
        InputError: the configuration does not describe a model. BundleError: given weights do not fit.
    """
    torch.manual_seed(config.seed)
    given = config.model
    model = Hlip(architecture(config))
    model.text_tower.use_tokenizer(tokenizer)
    scale = config.loss.logit_scale or LOGIT_SCALE[config.loss.kind]
    with torch.no_grad():
        for name in ("logit_scale", "report_logit_scale"):
            if hasattr(model, name):
                getattr(model, name).fill_(math.log(scale))
    trunk = model.visual.trunk
    if trunk.patch_embed.stem is not None:
        trunk.patch_embed.stem.bf16 = config.optimizer.precision == "bf16_stem"
    if given.start_image is not None:
        trunk.load_state_dict(convert_mae(read_checkpoint(given.start_image), trunk))
    elif given.whiten_patches:
        _whiten(trunk, _patches(config, studies, trunk))
    if given.start_text is not None:
        load_strict(model.text.transformer, _bert(read_checkpoint(given.start_text)))
    if given.spread:
        _spread(model, config, studies)
    _lock(model, given.unlocked_text_layers)
    trunk.patch_embed.requires_grad_(not given.lock_patches)
    return model


def _bert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of a BertModel without pooler, whatever a file puts before them."""
    bare = {name.removeprefix("bert.").removeprefix("model."): value for name, value in state.items()}
    return {name: v for name, v in bare.items() if name.startswith(("embeddings.", "encoder.")) and "_ids" not in name}


def _lock(model: Hlip, layers: int) -> None:
    """Leaves the last `layers` of the text tower to be trained, and its projection; -1: all of it."""
    if layers < 0:
        return
    transformer = model.text.transformer
    transformer.requires_grad_(False)
    for layer in list(transformer.encoder.layer)[len(transformer.encoder.layer) - layers :]:
        layer.requires_grad_(True)


def _patches(config: Config, studies: Studies, trunk: Encoder) -> Tensor:
    """[T, voxels] of patches that are not air, from studies spread over the training set, as epoch 0 shows them."""
    from hlip_core.assessment import air_level

    air, stage = air_level(studies.preprocessing), config.stages[0]
    count = min(WHITENING_STUDIES, len(studies.train))
    each = -(-config.model.whiten_patches // count)
    draw = torch.Generator().manual_seed(config.seed)
    found = []
    for i in range(count):
        images = studies.sample(0, i * len(studies.train) // count, stage).images
        assert isinstance(images, Tensor)
        voxels = trunk.patch_embed.cut(images.float())
        voxels = voxels.flatten(0, 1)
        voxels = voxels[(voxels > air).float().mean(1) >= 0.25]
        found.append(voxels[torch.randperm(len(voxels), generator=draw)[:each]])
    return torch.cat(found)


@torch.no_grad()
def _whiten(trunk: Encoder, patches: Tensor) -> None:
    """Patch embedding := the principal components of patches, each with the same spread.

    A random projection of smooth patches gives channels that all say nearly the same; these are uncorrelated.

    Raises:
        InputError: there are fewer patches than channels.
    """
    if len(patches) < trunk.config.embed_dim:
        raise InputError(f"model.whiten_patches: {len(patches)} patches cannot fill {trunk.config.embed_dim} channels")
    mean = patches.mean(0)
    _, spread, directions = torch.linalg.svd(patches - mean, full_matrices=False)  # [c], [c, voxels]
    top, directions = (spread**2)[: trunk.config.embed_dim], directions[: trunk.config.embed_dim]
    top = top / len(patches)
    weight = WHITENED * directions / (top + 1e-3 * top[0]).sqrt()[:, None]
    proj = trunk.patch_embed.proj
    assert proj.bias is not None
    proj.weight.copy_(weight.view_as(proj.weight))
    proj.bias.copy_(-(weight @ mean))


@torch.no_grad()
def _spread(model: Hlip, config: Config, studies: Studies) -> None:
    """Both towers' vectors := centred, and spread alike in all directions.

    Towers that start at random give every study, and every sentence, nearly the same vector; a small batch needs long
    to get away from there.
    """
    from hlip_core.assessment import air_level

    air = air_level(studies.preprocessing) if config.data.drop_air else None
    stage, count = config.stages[0], min(SPREAD_STUDIES, len(studies.train))
    trunk, tower = model.visual.trunk, model.text_tower
    model.eval()
    seen = []
    for i in range(count):
        images = studies.sample(0, i * len(studies.train) // count, stage).images
        assert isinstance(images, Tensor)
        seen.append(trunk([images.float()], air=air))
    sentences = list(dict.fromkeys(studies.sentences))[:SPREAD_SENTENCES]
    ids = tower.tokenize(sentences)
    said = torch.cat([tower.transformer(input_ids=b, attention_mask=(b != 0).long()).last_hidden_state[:, 0]
                      for b in ids.split(256)])  # fmt: skip
    for features, weight in ((torch.cat(seen), model.visual.head.proj.weight), (said, tower.proj.weight)):
        mean = features.mean(0)
        centred = features - mean
        _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
        rows = min(len(weight), len(spread))
        weight.zero_()
        weight[:rows] = (directions / (spread + 0.03 * spread[0])[:, None])[:rows]
        weight -= torch.outer(weight @ mean, mean) / (mean @ mean)  # what all have in common is not seen
        weight /= (centred @ weight.T).norm(dim=1).mean()
    model.train()
