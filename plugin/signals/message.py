"""One message: what a template is given, which is the same again for every repeat."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from plugin.index.signals import SignalErrand
from plugin.lifecycle import SignalStatus
from plugin.settings import SignalReceiver

NAMESPACE = uuid.UUID("b4f7c7a5-6c0d-4c8e-9d0a-6f0a8a1f6a52")
CONTROL_ID_LENGTH = 20  # MSH-10 in HL7 v2.5.1 is an ST of 20


@dataclass(frozen=True)
class Message:
    """Args: `text` is what the template made; `key` is the same for every repeat."""

    key: str
    text: str

    @property
    def control_id(self) -> str:
        return control_id(self.key)


def control_id(key: str) -> str:
    """MSH-10."""
    return key[:CONTROL_ID_LENGTH].upper()


def context(errand: SignalErrand, receiver: SignalReceiver) -> dict[str, Any]:
    """The names that a template knows; plugin/signals/templates/README.md lists them."""
    content = errand.content
    withdrawn = errand.status == SignalStatus.WITHDRAWN
    rows = [
        {**row, "retracted": row["label"] in errand.retracted, "positive": row["positive"] and not withdrawn}
        for row in content["findings"]
    ]
    said = [row for row in rows if row["positive"] or row["retracted"] or receiver.minimum_state == "reported"]
    seed = f"{content['installation_uid']}\n{content['study']['study_instance_uid']}"
    return {
        **content,
        "findings": [{**row, "identifier": _identifier(seed, row["label"])} for row in said],
        "report_identifier": _identifier(seed, "report"),
        "is_urgent": any(row["positive"] and row["critical"] for row in said),
        "key": errand.key,
        "control_id": control_id(errand.key),
        "status": errand.status,
        "corrects": errand.corrects,
        "created_at": datetime.fromtimestamp(errand.created_at, UTC).isoformat(timespec="seconds"),
        "receiver": {
            "name": receiver.name,
            "sending_application": receiver.sending_application,
            "sending_facility": receiver.sending_facility,
            "receiving_application": receiver.receiving_application,
            "receiving_facility": receiver.receiving_facility,
            "assigning_authority": receiver.assigning_authority,
        },
    }


def _identifier(seed: str, what: str) -> str:
    """Of a study's report, or of one finding in it: the same in every revision, so that the last takes its place."""
    return str(uuid.uuid5(NAMESPACE, f"{seed}\n{what}"))
