"""The dual tower: studies and texts in one space.

Letters: B studies, S texts, E width of the shared space.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hlip_core.architectures import ENCODERS, EncoderConfig
from hlip_core.encoder import Encoder, Head, Studies
from hlip_core.errors import InputError

__all__ = ["Hlip", "HlipConfig", "TextConfig", "VisualTower"]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower: fields of transformers' BertConfig (none: BERT base) and the longest text in tokens."""

    bert: dict[str, Any] = field(default_factory=dict)
    context_length: int = 256


@dataclass(frozen=True, kw_only=True)
class HlipConfig:
    """Both towers. ``text`` None: a model that only encodes images, as a worker needs it."""

    encoder: EncoderConfig
    text: TextConfig | None = field(default_factory=TextConfig)
    embed_dim: int = 512

    @classmethod
    def named(cls, name: str) -> Self:
        """The configuration of a published model, a key of :data:`hlip_core.architectures.ENCODERS`."""
        if name not in ENCODERS:
            raise InputError(f"unknown model {name!r}; known: {', '.join(ENCODERS)}")
        context = 512 if "singlescan" in name else 256
        return cls(encoder=ENCODERS[name], text=TextConfig(context_length=context))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From plain values, as :meth:`to_dict` gives them; ``encoder`` may be the name of a published one."""
        values = dict(values)
        try:
            encoder, text = values.pop("encoder"), values.pop("text", {})
            encoder = ENCODERS[encoder] if isinstance(encoder, str) else EncoderConfig(**encoder)
            return cls(encoder=encoder, text=None if text is None else TextConfig(**text), **values)
        except (KeyError, TypeError) as error:
            raise InputError(f"the model configuration has a missing or unknown field: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Projection(nn.Module):
    """From a feature of the trunk into the shared space."""

    def __init__(self, num_features: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(num_features, embed_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class VisualTower(nn.Module):
    """The study encoder and its heads: ``head`` for sentences; ``report_head`` for reports, with a register."""

    def __init__(self, config: HlipConfig) -> None:
        super().__init__()
        self.trunk = Encoder(config.encoder)
        self.head = Projection(config.encoder.num_features, config.embed_dim)
        if config.encoder.num_registers:
            self.report_head = Projection(config.encoder.num_features, config.embed_dim)

    def forward(self, images: Studies, *, head: Head = "sentence", **options: Any) -> Tensor:
        """Studies as :class:`Encoder` takes them to vectors [B, E] (not of unit length); options of its forward."""
        return self.project(self.trunk.forward_prefix(images, **options), head)

    def project(self, features: Tensor, head: Head = "sentence") -> Tensor:
        """Features of the prefix tokens [B, P, num_features] to vectors [B, E]."""
        if head == "sentence":
            return self.head(features[:, 0])
        if not hasattr(self, "report_head"):
            raise InputError("this model has no report head")
        return self.report_head(features[:, 1])


class Hlip(nn.Module):
    """Image tower, text tower and temperature; parameters are named as in the released checkpoints."""

    def __init__(self, config: HlipConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisualTower(config)
        if config.text is not None:
            from hlip_core.text import TextTower  # transformers takes seconds to import; a worker needs no text tower

            self.text = TextTower(
                bert=config.text.bert,
                embed_dim=config.embed_dim,
                context_length=config.text.context_length,
                report_head=config.encoder.num_registers > 0,
            )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if config.encoder.num_registers:
            self.report_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @classmethod
    def from_config(
        cls, config: HlipConfig | Mapping[str, Any] | str | Path, *, tokenizer: str | Path | None = None
    ) -> Self:
        """A model with random weights.

        ``config`` is a :class:`HlipConfig`, its plain values, the name of a published model, or a JSON file.
        ``tokenizer`` is a local folder with ``tokenizer.json`` or ``vocab.txt``, needed to encode strings.
        """
        if isinstance(config, str) and config in ENCODERS:
            config = HlipConfig.named(config)
        elif isinstance(config, str | Path):
            path = Path(config)
            if not path.is_file():
                raise InputError(f"{path} is neither a file nor a published model: {', '.join(ENCODERS)}")
            config = HlipConfig.from_dict(json.loads(path.read_text()))
        elif isinstance(config, Mapping):
            config = HlipConfig.from_dict(config)
        model = cls(config)
        if tokenizer is not None:
            model.text_tower.use_tokenizer(tokenizer)
        return model

    @property
    def text_tower(self) -> Any:
        """The text tower. Raises :class:`InputError` for a model without one."""
        if not hasattr(self, "text"):
            raise InputError("this model has no text tower")
        return self.text

    def encode_image(
        self,
        studies: Studies,
        *,
        normalize: bool = True,
        head: Head = "sentence",
        scan_index: Any = None,
        air: float | None = None,
    ) -> Tensor:
        """Vectors [B, E] of studies, of unit length unless ``normalize`` is False.

        ``studies`` are normalised voxels [B, N, 1, D, H, W], or a list of [N, 1, D, H, W] that may differ in size.
        ``scan_index`` and ``air`` as in :meth:`Encoder.forward`.
        """
        features = self.visual(studies, head=head, scan_index=scan_index, air=air)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, texts: Sequence[str] | Tensor, *, normalize: bool = True, head: Head = "sentence") -> Tensor:
        """Vectors [S, E] of texts or of their token ids [S, L], of unit length unless ``normalize`` is False."""
        features = self.text_tower(texts, head=head)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, studies: Studies, texts: Sequence[str] | Tensor) -> dict[str, Tensor]:
        """Vectors of both and the temperature, as a loss needs them."""
        return {
            "image_features": self.encode_image(studies),
            "text_features": self.encode_text(texts),
            "logit_scale": self.logit_scale.exp(),
        }
