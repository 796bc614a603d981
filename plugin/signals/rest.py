"""FHIR and webhooks: a message by HTTP POST, which is taken only by a status of 2xx."""

import hashlib
import hmac
import json
import time
from typing import Any

import requests

from plugin.delivery import NotNow, judge_status, judged, session
from plugin.settings import SignalReceiver
from plugin.signals.message import Message

FHIR_JSON = "application/fhir+json"
LONGEST_ANSWER = 1 << 20
SIGNATURE_VERSION = "v1"


class _Poster:
    """Raises plugin.tls.TlsError."""

    def __init__(self, settings: SignalReceiver, *, timeout_seconds: float) -> None:
        self._address = settings.address
        self._session = session(settings, timeout_seconds)

    def _post(self, body: bytes, headers: dict[str, str]) -> bytes:
        """The body of a 2xx answer. Raises NotNow or Refused."""
        with judged():  # no redirect is followed: where it leads, a GET would be answered 200 and nothing be told
            answer = self._session.post(self._address, data=body, headers=headers, stream=True, allow_redirects=False)
            with answer:
                judge_status(answer.status_code)
                return _bounded(answer)


def _bounded(answer: requests.Response) -> bytes:
    """The whole answer, so that one which breaks off is none. Raises what requests raises, ValueError if too long."""
    content = b""
    for chunk in answer.iter_content(65536):
        content += chunk
        if len(content) > LONGEST_ANSWER:
            raise ValueError("the answer is too long")
    return content


class FhirReceiver(_Poster):
    """A FHIR R4 server; the address is its base, where transactions are posted (http.html#transaction)."""

    def send(self, message: Message) -> None:
        """Hand over one message. Raises NotNow or Refused."""
        answer = self._post(message.text.encode(), {"Content-Type": FHIR_JSON, "Accept": FHIR_JSON})
        if wanted := _entries(json.loads(message.text)):
            _judge_transaction(answer, wanted)


def _entries(body: Any) -> int:
    """How many requests a bundle holds; 0 for a resource that a site's template posts alone."""
    return len(body.get("entry", ())) if isinstance(body, dict) and body.get("resourceType") == "Bundle" else 0


def _judge_transaction(answer: bytes, wanted: int) -> None:
    """Taken is only what the response says of every entry. Raises NotNow or Refused."""
    try:
        statuses = [int(str(entry["response"]["status"])[:3]) for entry in json.loads(answer)["entry"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise NotNow("the answer is no transaction response") from None
    for status in statuses:
        judge_status(status)
    if len(statuses) != wanted:
        raise NotNow("the answer does not confirm every resource")


class WebhookReceiver(_Poster):
    """A service that is told by a signed POST.

    The signature is the HMAC-SHA256, in hex, of the timestamp, a full stop and the body, with the shared secret as
    its key. The timestamp is that of the try, the idempotency key that of the message.
    """

    def __init__(self, settings: SignalReceiver, *, timeout_seconds: float) -> None:
        super().__init__(settings, timeout_seconds=timeout_seconds)
        self._secret = settings.secret.get_secret_value().encode()

    def send(self, message: Message) -> None:
        """Hand over one message. Raises NotNow or Refused."""
        body, at = message.text.encode(), str(int(time.time()))
        self._post(
            body,
            {
                "Content-Type": "application/json",
                "Idempotency-Key": message.key,
                "X-Hlip-Timestamp": at,
                "X-Hlip-Signature": f"{SIGNATURE_VERSION}={signature(self._secret, at, body)}",
            },
        )


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    return hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
