"""Pseudonyms: what stands for a UID, a patient, a date once the identity is gone.

All follow from one secret salt by HMAC-SHA256: the same input gives the same pseudonym under the same salt, and
without the salt nobody can test whether a known identity is in the cohort.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from hlip_core.errors import InputError

__all__ = ["Pseudonyms", "read_salt"]

SALT_BYTES = 32
SHIFT_DAYS = range(30, 3650)  # how far dates move back, one number for each patient


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms under one salt; `keep` writes identities as they are (only paths are still made from the salt)."""

    salt: bytes
    keep: bool = False

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(self.salt, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), hashlib.sha256)

    def token(self, kind: str, value: str) -> str:
        """32 hexadecimal digits that stand for a value, whether identities are kept or not."""
        return self._digest(kind, value)[:16].hex()

    def salted_uid(self, uid: str) -> str:
        """A UID under 2.25 (PS3.5 B.2), whether identities are kept or not: safe as the name of a file."""
        return f"2.25.{int.from_bytes(self._digest('uid', uid)[:16])}" if uid else ""

    def uid(self, uid: str) -> str:
        """What stands for a UID of a study, series, instance or frame of reference."""
        return uid if self.keep else self.salted_uid(uid)

    def patient(self, patient_id: str, study_instance_uid: str) -> str:
        """What stands for a patient; a study without a PatientID is a patient of its own."""
        normal = patient_id.strip().casefold()
        if self.keep and normal:
            return patient_id.strip()
        return self.token("patient", normal) if normal else self.token("study", study_instance_uid)

    def shift(self, value: date, patient: str) -> date:
        """A date, moved back by a number of days that all dates of the patient share."""
        if self.keep:
            return value
        days = SHIFT_DAYS[int.from_bytes(self._digest("shift", patient)[:8]) % len(SHIFT_DAYS)]
        return value - timedelta(days=min(days, value.toordinal() - 1))

    def fraction(self, patient: str) -> float:
        """A number in [0, 1) that decides the split of all studies of a patient."""
        return int.from_bytes(self._digest("split", patient)[:6]) / 2**48


def read_salt(path: Path) -> bytes:
    """The salt in a file; a new random one is written (readable by its owner alone) where there is none.

    Raises:
        InputError: the file is too short to be a salt.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(SALT_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
    salt = path.read_bytes().strip()
    if len(salt) < SALT_BYTES:
        raise InputError(f"the salt in {path} has {len(salt)} bytes, at least {SALT_BYTES} are needed")
    return salt
