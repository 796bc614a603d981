"""The receivers by name, each with its template."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from plugin import settings as s
from plugin.delivery import NotNow
from plugin.index.signals import SignalErrand
from plugin.signals.example import EXAMPLE
from plugin.signals.message import Message, context
from plugin.signals.mllp import MllpReceiver
from plugin.signals.rest import FhirReceiver, WebhookReceiver
from plugin.signals.template import MessageTemplate, TemplateFault


class Receiver(Protocol):
    def send(self, message: Message) -> None:
        """Hand over one message. Raises NotNow or Refused."""


KINDS: dict[str, Callable[..., Receiver]] = {"hl7": MllpReceiver, "fhir": FhirReceiver, "webhook": WebhookReceiver}


@dataclass(frozen=True)
class Line:
    """To one receiver: what it is sent, how, and in which words."""

    settings: s.SignalReceiver
    receiver: Receiver
    template: MessageTemplate

    def message(self, errand: SignalErrand) -> Message:
        """Raises TemplateFault."""
        return Message(errand.key, self.template.render(context(errand, self.settings)))


@dataclass(frozen=True)
class Switchboard:
    """A signal to a receiver that was taken out of the settings waits for its return."""

    lines: dict[str, Line]

    @classmethod
    def from_settings(cls, settings: s.Settings) -> "Switchboard":
        """Raises plugin.tls.TlsError; TemplateFault for a template with which not even an example can be written."""
        timeout = settings.delivery.timeout_seconds
        lines = {
            row.name: Line(row, KINDS[row.kind](row, timeout_seconds=timeout), MessageTemplate(row.kind, row.template))
            for row in settings.signals
        }
        for line in lines.values():
            line.message(EXAMPLE)
        return cls(lines)

    def send(self, errand: SignalErrand) -> None:
        """Raises NotNow or plugin.delivery.Refused. What a person can mend in a template is tried again."""
        line = self.lines.get(errand.receiver)
        if line is None:
            raise NotNow("no such receiver in the settings")
        try:
            message = line.message(errand)
        except TemplateFault as fault:
            raise NotNow(f"template {fault}") from None
        line.receiver.send(message)
