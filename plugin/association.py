"""An open association as a storage SCP: one blocking loop that reads messages and answers them (PS3.8 section 9.2).

It knows C-STORE, C-ECHO, release and abort, which is all that a sender of images needs, and costs a fraction of a
general DIMSE provider: data sets go from the socket's buffer to the file unparsed. Associations that negotiated more
are served by pynetdicom instead (see `plugin.listener`).
"""

import struct
import time
from collections.abc import Mapping

import structlog

from plugin.command import C_CANCEL_RQ, C_ECHO_RQ, C_STORE_RQ, IS_RESPONSE, UNRECOGNIZED_OPERATION, NotACommand, Request
from plugin.storage import CANNOT_UNDERSTAND, SUCCESS, Receiving, Sender, Storage
from plugin.wire import (
    ABORT,
    INVALID_PARAMETER_VALUE,
    P_DATA_TF,
    RELEASE_RP,
    RELEASE_RQ,
    UNEXPECTED_PARAMETER,
    UNEXPECTED_PDU,
    ProtocolError,
    Stopped,
    Wire,
    pdu,
)

log = structlog.get_logger("hlip.listener")

USER, PROVIDER = 0, 2  # source of an A-ABORT, PS3.8 Table 9-26
COMMAND, LAST = 1, 2  # message control header, PS3.8 section E.2
LONGEST_COMMAND = 1 << 16
MIN_BYTES_PER_SECOND = 1000
"""A message that comes slower, once the network timeout is over, is taken for a peer that only pretends to send."""

_PDV = struct.Struct(">LBB")  # item length, presentation context ID, message control header


class Association:
    """Args: `syntaxes` has the transfer syntax of each accepted presentation context by its ID."""

    def __init__(
        self,
        wire: Wire,
        storage: Storage,
        sender: Sender,
        *,
        syntaxes: Mapping[int, str],
        peer_max_pdu_length: int,
        timeout_seconds: float | None,
    ) -> None:
        self._wire = wire
        self._storage = storage
        self._sender = sender
        self._syntaxes = syntaxes
        self._longest = peer_max_pdu_length
        self._timeout = timeout_seconds
        self._context_id = 0  # of the message under way; 0: none
        self._command = bytearray()
        self._request: Request | None = None
        self._receiving: Receiving | None = None
        self._began = 0.0
        self._received = 0
        self.num_kept = self.num_refused = 0

    def run(self) -> str:
        """Serve until the end, and say how it ended. Nothing of an unfinished instance is left."""
        try:
            return self._serve()
        except ProtocolError as error:
            self._wire.abort(source=PROVIDER, reason=error.reason)
            return f"aborted: protocol error, reason {error.reason}"
        except NotACommand as error:
            self._wire.abort(source=USER)
            return f"aborted: {error}"
        except TimeoutError:
            self._wire.abort(source=USER)
            return "aborted: the peer was silent or too slow"
        except Stopped:
            self._wire.abort(source=USER)
            return "aborted: the listener stops"
        except OSError as error:
            return f"the connection broke: {type(error).__name__}"
        finally:
            if self._receiving is not None:
                self._receiving.discard()

    def _serve(self) -> str:
        while True:
            self._make_room()
            kind, content = self._wire.next_pdu()
            if kind == P_DATA_TF:
                self._on_data(content)
            elif kind == RELEASE_RQ:
                self._wire.send(pdu(RELEASE_RP, bytes(4)))
                self._wire.linger()
                return "released"
            elif kind == ABORT:
                return "aborted by the peer"
            else:
                raise ProtocolError(UNEXPECTED_PDU)

    def _make_room(self) -> None:
        """Reuse the wire's arena: at once when nothing in it is needed, else after what is needed was written."""
        if self._receiving is None and self._wire.is_drained:
            self._wire.rewind()
        elif not self._wire.has_room:
            if self._receiving is not None:
                self._receiving.flush()
            self._wire.rewind()

    # ---- fragments (PS3.8 section 9.3.5 and Annex E) ---------------------------------------------------

    def _on_data(self, content: memoryview) -> None:
        """One P-DATA-TF: presentation data values, each a fragment of a command set or of a data set."""
        at, end = 0, len(content)
        while at < end:
            if at + _PDV.size > end:
                raise ProtocolError(INVALID_PARAMETER_VALUE)
            length, context_id, control = _PDV.unpack_from(content, at)
            begin, at = at + _PDV.size, at + 4 + length
            if at < begin or at > end:
                raise ProtocolError(INVALID_PARAMETER_VALUE)
            self._check(context_id, control, at - begin)
            if control & COMMAND:
                self._on_command(content[begin:at], last=bool(control & LAST))
            else:
                self._on_data_set(content[begin:at], last=bool(control & LAST))

    def _check(self, context_id: int, control: int, length: int) -> None:
        """A message is of one presentation context, its command set before its data set, and it gets on."""
        if context_id not in self._syntaxes:
            raise ProtocolError(INVALID_PARAMETER_VALUE)
        if self._context_id == 0:
            self._context_id, self._began, self._received = context_id, time.monotonic(), 0
        if context_id != self._context_id or bool(control & COMMAND) != (self._request is None):
            raise ProtocolError(UNEXPECTED_PARAMETER)
        self._received += length
        elapsed = time.monotonic() - self._began
        if self._timeout is not None and elapsed > self._timeout and self._received < elapsed * MIN_BYTES_PER_SECOND:
            raise TimeoutError("the peer took too long for a message")

    def _on_command(self, fragment: memoryview, *, last: bool) -> None:
        self._command += fragment
        if len(self._command) > LONGEST_COMMAND:
            raise NotACommand("longer than any command set is")
        if not last:
            return
        request = self._request = Request.from_bytes(bytes(self._command))
        self._command.clear()
        if request.field == C_STORE_RQ and request.has_data_set:
            self._receiving = self._storage.receive(
                self._sender,
                sop_class_uid=request.sop_class_uid,
                sop_instance_uid=request.sop_instance_uid,
                transfer_syntax_uid=self._syntaxes[self._context_id],
            )
        if not request.has_data_set:
            self._end(self._status(request))

    def _on_data_set(self, fragment: memoryview, *, last: bool) -> None:
        assert self._request is not None
        if self._receiving is not None:
            self._receiving.add(fragment)
        if last:
            self._end(self._status(self._request))

    # ---- messages --------------------------------------------------------------------------------------

    def _status(self, request: Request) -> int | None:
        """The status that answers a request; None where nothing is to be answered."""
        if self._receiving is not None:
            status = self._receiving.finish()
            self.num_kept += status == SUCCESS
            self.num_refused += status != SUCCESS
            return status
        if request.field == C_ECHO_RQ:
            return SUCCESS
        if request.field == C_STORE_RQ:
            return CANNOT_UNDERSTAND  # no data set
        if request.field == C_CANCEL_RQ:  # nothing here lasts long enough to be cancelled; it has no response
            return None
        if request.field & IS_RESPONSE:
            raise NotACommand("a response that was not asked for")
        return UNRECOGNIZED_OPERATION

    def _end(self, status: int | None) -> None:
        request, context_id = self._request, self._context_id
        assert request is not None
        self._request = self._receiving = None
        self._context_id = 0
        if status is not None:
            self._wire.send(self._fragmented(context_id, request.response(status)))
        if status == SUCCESS and request.field == C_STORE_RQ:
            self._sender.open_ahead()

    def _fragmented(self, context_id: int, command: bytes) -> bytes:
        """A command set as the PDUs that the peer takes."""
        room = max(self._longest - _PDV.size, 1) if self._longest else len(command)
        parts = [command[at : at + room] for at in range(0, len(command), room)]
        controls = [COMMAND] * (len(parts) - 1) + [COMMAND | LAST]
        return b"".join(
            pdu(P_DATA_TF, _PDV.pack(len(part) + 2, context_id, control) + part)
            for part, control in zip(parts, controls, strict=True)
        )
