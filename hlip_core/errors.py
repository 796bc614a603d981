"""What can go wrong, as one tree.

    HlipError
    ├── Refused                 the series is not analysed, for a reason that a person can read
    ├── DamagedScan             a stored prepared scan is truncated, altered or foreign
    ├── InputError              tensors or arrays of a shape, type or value that cannot be meant
    └── BundleError             a bundle cannot be used
        ├── DigestMismatch      a file of the bundle is not the one that its digests name
        ├── HostileCheckpoint   a checkpoint that asks for more than numbers
        └── CheckpointMismatch  parameters are missing, unexpected or of another shape

No message holds anything that identifies a patient: UIDs, counts and keywords only.
"""

from __future__ import annotations

from collections.abc import Sequence

from hlip_core.reasons import Reason

__all__ = [
    "BundleError",
    "CheckpointMismatch",
    "DamagedScan",
    "DigestMismatch",
    "HlipError",
    "HostileCheckpoint",
    "InputError",
    "Refused",
]


class HlipError(Exception):
    """Any failure that hlip_core knows how to name."""


class Refused(HlipError):
    """A series that is not analysed: `reason` is the code, `detail` what was found (no identity in it)."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


class DamagedScan(HlipError):
    """A file that should hold a prepared scan is truncated, altered or something else."""


class InputError(HlipError):
    """Arrays or tensors whose shape, type or values cannot be meant."""


class BundleError(HlipError):
    """A bundle that cannot be used."""


class DigestMismatch(BundleError):
    """A file of the bundle differs from what its digests say."""


class HostileCheckpoint(BundleError):
    """A checkpoint that would run code or take more memory than its file can justify."""


class CheckpointMismatch(BundleError):
    """The parameters of a checkpoint do not fit the model; the three lists hold parameter names."""

    def __init__(
        self,
        message: str = "the checkpoint does not fit the model",
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.misshapen = tuple(misshapen)

    def __str__(self) -> str:
        lists = {"missing": self.missing, "unexpected": self.unexpected, "misshapen": self.misshapen}
        parts = [f"{len(names)} {kind} ({', '.join(names[:3])})" for kind, names in lists.items() if names]
        return "; ".join([str(self.args[0]), *parts])
