"""The sections of the settings that tell the world: signals to receivers outside the PACS, metrics."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from plugin.sections import Section, TlsFiles

SCHEMES = {"hl7": ("mllp", "mllps"), "fhir": ("http", "https"), "webhook": ("http", "https")}
"""Of an address, by the kind of its receiver: in the clear, and over TLS."""

SHORTEST_SECRET = 16


class SignalReceiver(TlsFiles):
    """Who is told what was found, by which kind of message, and when: a row of ``[[signals]]``."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    kind: Literal["hl7", "fhir", "webhook"]
    address: str
    findings: Literal["critical", "any"] | tuple[str, ...] = "critical"
    minimum_state: Literal["positive", "reported"] = "positive"
    send_results_of_untrained_or_phantom_models: bool = False
    template: str = ""
    user: str = ""
    password: SecretStr = SecretStr("")
    token: SecretStr = SecretStr("")
    secret: SecretStr = SecretStr("")
    sending_application: str = "HLIP"
    sending_facility: str = ""
    receiving_application: str = ""
    receiving_facility: str = ""
    assigning_authority: str = ""
    tls_check_hostname: bool = True

    @property
    def is_tls(self) -> bool:
        return urlsplit(self.address).scheme == SCHEMES[self.kind][1]

    @model_validator(mode="after")
    def _address_fits(self) -> "SignalReceiver":
        try:
            where = urlsplit(self.address)
            fits = where.scheme in SCHEMES[self.kind] and bool(where.hostname) and (self.kind != "hl7" or where.port)
        except ValueError:
            fits = False
        if not fits:
            examples = {"hl7": "mllp://host:2575 or mllps://host:2575"}
            wanted = examples.get(self.kind, "http://host/path or https://host/path")
            raise ValueError(f"signal {self.name}: the address of kind {self.kind} must be like {wanted}")
        return self

    @model_validator(mode="after")
    def _tls_is_used(self) -> "SignalReceiver":
        if (self.tls_ca or self.tls_certificate) and not self.is_tls:
            scheme = SCHEMES[self.kind][1]
            raise ValueError(f"signal {self.name}: TLS is set up but not used: it needs a {scheme}:// address")
        return self

    @model_validator(mode="after")
    def _is_signed(self) -> "SignalReceiver":
        if self.kind == "webhook" and len(self.secret.get_secret_value()) < SHORTEST_SECRET:
            raise ValueError(
                f"signal {self.name}: a webhook is signed, and needs a secret of {SHORTEST_SECRET} characters or more"
            )
        return self


class MetricsSettings(Section):
    """Where each role answers /metrics, /healthz and /readyz; port 0: nowhere. The web role does so on its own port."""

    host: str = "127.0.0.1"
    web: bool = True
    listen_port: int = Field(0, ge=0, le=65535)
    schedule_port: int = Field(0, ge=0, le=65535)
    prepare_port: int = Field(0, ge=0, le=65535)
    analyse_port: int = Field(0, ge=0, le=65535)
    deliver_port: int = Field(0, ge=0, le=65535)
    signal_port: int = Field(0, ge=0, le=65535)

    def port(self, role: str) -> int:
        """Of a role, or of a worker's queue."""
        return int(getattr(self, f"{role}_port", 0))
