"""One batch held against its texts, in parts that fit into memory, over all processes.

The contrast is between all studies and all texts of the batch, however it is divided: features are computed first,
the loss over all of them gives each feature's gradient, and each part is encoded once more to take it back (as in
GradCache, arXiv 2101.06983). A batch in one part keeps its graph and is encoded once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from hlip_core.encoder import Head, Patches
from hlip_core.model import Hlip
from trainer.config import Config
from trainer.dataset import Sample, label_names
from trainer.losses import clip_loss, positives, siglip_loss
from trainer.world import World

__all__ = ["Contrast"]

HEADS: dict[str, tuple[Head, ...]] = {"sentence": ("sentence",), "report": ("report",), "both": ("sentence", "report")}
SIGLIP_BIAS = -10.0


@dataclass(frozen=True)
class Part:
    """Some studies of a batch with the texts of one head. owner [S]: whose text it is, by place in the part."""

    texts: list[str]
    owner: list[int]


class Contrast(nn.Module):
    """The loss of a run. Its own parameters are SigLIP's biases, one a head, and the head that learns labels; the
    temperatures are the model's.
    """

    def __init__(self, config: Config, model: Hlip, world: World, *, air: float | None) -> None:
        super().__init__()
        self._config, self._model, self._world, self._air = config, (model,), world, air  # the model is not a part
        self.heads = HEADS[config.loss.text]
        if config.loss.kind == "siglip":
            self.biases = nn.ParameterDict({head: torch.tensor(SIGLIP_BIAS) for head in self.heads})
        if any(stage.labels for stage in config.stages):
            self.labels = nn.Linear(model.visual.trunk.config.num_features, len(label_names()))

    def backward(self, samples: Sequence[Sample], *, step: int, labels: float = 0.0) -> float:
        """Adds the gradient of the loss over the whole batch to the model's parameters; returns the loss.

        labels: its share that asks for the findings which the reports state, the rest is the contrast.
        """
        count = min(self._config.optimizer.accumulate, len(samples))
        cuts = [len(samples) * i // count for i in range(count + 1)]
        parts = [samples[low:high] for low, high in pairwise(cuts)]
        with torch.set_grad_enabled(count == 1):
            encoded = [self._encode(part, seed=step, labels=labels) for part in parts]
        leaves = [[feature.detach().requires_grad_() for feature in features] for features in encoded]
        loss = torch.zeros((), device=self._world.device)
        if labels:
            loss = loss + labels * self._labels_loss(parts, [part[-1] for part in leaves])
        if labels < 1:
            loss = loss + (1 - labels) * self._contrast(parts, leaves)
        loss.backward()
        for i, part in enumerate(parts):
            features = encoded[i] if count == 1 else self._encode(part, seed=step, labels=labels)
            learnt = [(own, leaf.grad) for own, leaf in zip(features, leaves[i], strict=True) if own.requires_grad]
            torch.autograd.backward([own for own, _ in learnt], [grad for _, grad in learnt])
        self._sum_gradients()
        return float(loss.detach())

    def _encode(self, samples: Sequence[Sample], *, seed: int, labels: float) -> list[Tensor]:
        """Unit vectors of a part: images and texts of the first head, then of the second; last, for labels, features
        of the images as the trunk gives them.
        """
        model, device = self._model[0], self._world.device
        images = [_moved(sample.images, device) for sample in samples]
        with torch.random.fork_rng(enabled=True), torch.autocast(
            device.type, torch.bfloat16, enabled=self._config.optimizer.precision == "bf16"
        ):  # fmt: skip
            torch.manual_seed(seed)  # dropout of the text tower, the same when a part is encoded once more
            prefix = model.visual.trunk.forward_prefix(images, air=self._air, seeds=[sample.seed for sample in samples])
            features = []
            for head in self.heads if labels < 1 else ():
                features += [model.visual.project(prefix, head), _texts(model, _part(samples, head).texts, head)]
        unit = [nn.functional.normalize(feature.float(), dim=-1) for feature in features]
        return [*unit, prefix[:, 0].float()] if labels else unit

    def _labels_loss(self, parts: Sequence[Sequence[Sample]], features: Sequence[Tensor]) -> Tensor:
        """Binary cross-entropy of what the reports state, a report that is silent about a finding denies it."""
        truth = torch.zeros(sum(map(len, parts)), self.labels.out_features, device=self._world.device)
        for row, sample in zip(truth, (sample for part in parts for sample in part), strict=True):
            row[list(sample.findings)] = 1
        logits = self.labels(self._world.gather(torch.cat(list(features))))
        return nn.functional.binary_cross_entropy_with_logits(logits, self._world.gather(truth))

    def _contrast(self, parts: Sequence[Sequence[Sample]], leaves: Sequence[Sequence[Tensor]]) -> Tensor:
        model, gather = self._model[0], self._world.gather
        device = self._world.device
        loss = torch.zeros((), device=device)
        for place, head in enumerate(self.heads):
            images = gather(torch.cat([part[2 * place] for part in leaves]))
            texts = gather(torch.cat([part[2 * place + 1] for part in leaves]))
            mine = _part([sample for part in parts for sample in part], head)
            text_id = gather(torch.tensor([_text_id(text) for text in mine.texts], device=device))
            counts = gather(torch.bincount(torch.tensor(mine.owner)).to(device))
            owner = torch.repeat_interleave(torch.arange(len(images), device=device), counts)
            positive = positives(owner, text_id, len(images))
            scale = model.logit_scale if head == "sentence" else model.report_logit_scale
            if self._config.loss.kind == "siglip":
                bias = self.biases[head]
                loss = loss + siglip_loss(images, texts, positive, logit_scale=scale, logit_bias=bias)
            else:
                loss = loss + clip_loss(images, texts, positive, logit_scale=scale)
        return loss / len(self.heads)

    def _sum_gradients(self) -> None:
        """Over the processes. Temperatures and biases have the whole gradient in each of them already."""
        self._world.sum_gradients(
            parameter for name, parameter in self._model[0].named_parameters() if not name.endswith("logit_scale")
        )


def _moved(images: Tensor | Patches, device: torch.device) -> Tensor | Patches:
    if isinstance(images, Patches):
        return Patches(images.tokens.to(device, torch.float32), images.kept.to(device), images.grid)
    return images.to(device, torch.float32)


def _part(samples: Sequence[Sample], head: Head) -> Part:
    rows = [sample.texts if head == "sentence" else (sample.report,) for sample in samples]
    return Part([text for row in rows for text in row], [i for i, row in enumerate(rows) for _ in row])


def _texts(model: Hlip, texts: list[str], head: Head) -> Tensor:
    """Vectors of the texts [S, E]; equal texts are encoded once."""
    unique = list(dict.fromkeys(texts))
    place = {text: i for i, text in enumerate(unique)}
    vectors = model.encode_text(unique, normalize=False, head=head)
    return vectors[[place[text] for text in texts]]


def _text_id(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())
