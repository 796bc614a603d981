"""From DICOM to numbers: prepared scans, the HLIP study encoder, zero-shot findings. Pure: no network, no database.

    encoder = hlip_core.create_encoder("vit_base_multiscan_h2_token1176")  # random weights
    encoder.load_state_dict(state)                                         # names as in the released trunk
    encoder.eval()(images)                                                 # [B, N, 1, D, H, W] float -> [B, 768]

    model = hlip_core.Hlip.from_config("vit_base_multiscan_h2_token1176", tokenizer=folder)
    model.load_state_dict(hlip_core.read_checkpoint("released.pt"))        # 351 names: visual.*, text.*, logit_scale
    model.encode_image(studies)                                            # -> [B, 512], unit length
    model.encode_text(["subdural hematoma"])                               # -> [S, 512]; or token ids [S, L]
    model.logit_scale                                                      # scalar, a logarithm

    hlip_core.Hlip.from_config({                                           # any other shape
        "encoder": {"img_size": [48, 224, 224], "patch_size": [8, 16, 16], "embed_dim": 384, "num_heads": 6,
                    "depth": 3, "scan_blocks": [0, 1], "study_blocks": [2]},   # fields of EncoderConfig
        "text": {"bert": {"hidden_size": 384}, "context_length": 256},         # fields of transformers' BertConfig
        "embed_dim": 512,
    })

    state = hlip_core.convert_mae(mae_state, encoder)                      # ImageNet MAE ViT -> start of an encoder
    encoder.load_state_dict(state)

    bundle = hlip_core.load_bundle(folder)                                 # weights, prompts, calibration, digests
    bundle.assess(scans)                                                   # prepared scans -> embedding, findings

Importing the package is light: torch is imported with the first name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hlip_core.architectures import ENCODERS, EncoderConfig
    from hlip_core.bundle import Bundle, load_bundle
    from hlip_core.checkpoint import read_checkpoint
    from hlip_core.encoder import Encoder, create_encoder
    from hlip_core.initialisation import convert_mae
    from hlip_core.model import Hlip, HlipConfig
    from hlip_core.untrained import write_untrained_bundle

_WHERE = {
    "Bundle": "bundle",
    "ENCODERS": "architectures",
    "Encoder": "encoder",
    "EncoderConfig": "architectures",
    "Hlip": "model",
    "HlipConfig": "model",
    "convert_mae": "initialisation",
    "create_encoder": "encoder",
    "load_bundle": "bundle",
    "read_checkpoint": "checkpoint",
    "write_untrained_bundle": "untrained",
}

__all__ = [
    "ENCODERS",
    "Bundle",
    "Encoder",
    "EncoderConfig",
    "Hlip",
    "HlipConfig",
    "convert_mae",
    "create_encoder",
    "load_bundle",
    "read_checkpoint",
    "write_untrained_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hlip_core.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
