"""The opening of an association by pynetdicom's PDU classes and presentation logic (PS3.8 section 7.1, PS3.7 Annex D).

Asynchronous operations, roles and extended negotiation stay unanswered, and what is not answered is not agreed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.uid import UID
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from hlip_core.headers import MALFORMED
from plugin.admission import Rejection
from plugin.wire import INVALID_PARAMETER_VALUE, ProtocolError

APPLICATION_CONTEXT_NAME = UID("1.2.840.10008.3.1.1.1")  # PS3.7 section A.2.1
ACCEPTED = 0x00


@dataclass(frozen=True)
class Proposal:
    """An A-ASSOCIATE-RQ."""

    primitive: A_ASSOCIATE
    protocol_version: int

    @classmethod
    def from_pdu(cls, encoded: bytes) -> "Proposal":
        """Raises ProtocolError for one that breaks the rules."""
        request = A_ASSOCIATE_RQ()
        try:
            request.decode(encoded)
            return cls(request.to_primitive(), request.protocol_version)
        except MALFORMED as error:
            raise ProtocolError(INVALID_PARAMETER_VALUE) from error

    @property
    def calling_ae_title(self) -> str:
        return str(self.primitive.calling_ae_title or "").strip()

    @property
    def called_ae_title(self) -> str:
        return str(self.primitive.called_ae_title or "").strip()

    @property
    def max_pdu_length(self) -> int:
        """The longest PDU that the peer takes; 0: any (PS3.8 Annex D.1)."""
        return self.primitive.maximum_length_received or 0

    def negotiate(self, supported: Sequence[PresentationContext]) -> list[PresentationContext]:
        """What becomes of each context that the peer proposes: one result each.

        Raises ProtocolError for a context that proposes no transfer syntax, or is no context otherwise.
        """
        proposed = self.primitive.presentation_context_definition_list
        try:
            results, _ = negotiate_as_acceptor(proposed, list(supported))
        except MALFORMED as error:
            raise ProtocolError(INVALID_PARAMETER_VALUE) from error
        return results

    def acceptance(self, results: Sequence[PresentationContext], *, max_pdu_length: int) -> bytes:
        """The A-ASSOCIATE-AC."""
        answer = A_ASSOCIATE()
        answer.application_context_name = APPLICATION_CONTEXT_NAME
        answer.calling_ae_title = self.primitive.calling_ae_title
        answer.called_ae_title = self.primitive.called_ae_title
        answer.result, answer.result_source = ACCEPTED, 0x01
        answer.presentation_context_definition_results_list = list(results)
        answer.user_information = _user_information(max_pdu_length)
        return _encoded(A_ASSOCIATE_AC(), answer)

    @staticmethod
    def rejection(why: Rejection) -> bytes:
        """The A-ASSOCIATE-RJ."""
        answer = A_ASSOCIATE()
        answer.result, answer.result_source, answer.diagnostic = why.result, why.source, why.reason
        return _encoded(A_ASSOCIATE_RJ(), answer)


def _user_information(max_pdu_length: int) -> list[Any]:
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = max_pdu_length
    implementation.implementation_class_uid = UID(PYNETDICOM_IMPLEMENTATION_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = PYNETDICOM_IMPLEMENTATION_VERSION
    return [length, implementation, version]


def _encoded(answer: A_ASSOCIATE_AC | A_ASSOCIATE_RJ, primitive: A_ASSOCIATE) -> bytes:
    answer.from_primitive(primitive)
    return bytes(answer.encode())
