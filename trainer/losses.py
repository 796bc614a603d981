"""The contrast between studies and texts.

Letters: B studies, S texts, E width of the shared space. `positive` [B, S] says which text is true of which study.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["clip_loss", "positives", "siglip_loss"]


def positives(owner: Tensor, text_id: Tensor, num_studies: int) -> Tensor:
    """bool [B, S]: a text belongs to the study that it was taken from, and to all that have the same text.

    owner [S]: index of the study; text_id [S]: equal for equal texts.
    """
    same = (text_id[:, None] == text_id[None]).float()  # [s, s]
    return F.one_hot(owner, num_studies).T.float() @ same > 0


def clip_loss(images: Tensor, texts: Tensor, positive: Tensor, *, logit_scale: Tensor) -> Tensor:
    """Mean of both cross-entropies; with one text a study, all different, CLIP's loss (arXiv 2103.00020).

    images [B, E] and texts [S, E] of unit length; logit_scale: a logarithm. Where a study has several texts, or a
    text several studies, the target is spread evenly over them.
    """
    logits = logit_scale.exp() * images @ texts.T  # [b, s]
    target = positive.float()
    image = (logits.log_softmax(1) * target).sum(1) / target.sum(1)
    text = (logits.log_softmax(0) * target).sum(0) / target.sum(0)
    return -(image.mean() + text.mean()) / 2


def siglip_loss(images: Tensor, texts: Tensor, positive: Tensor, *, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Sum over all pairs of the binary cross-entropy, by study (arXiv 2303.15343). Arguments as in `clip_loss`."""
    logits = logit_scale.exp() * images @ texts.T + logit_bias  # [b, s]
    sign = torch.where(positive, 1.0, -1.0)
    return -F.logsigmoid(sign * logits).sum() / len(images)
