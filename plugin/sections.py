"""The sections of the settings that concern this machine: where things lie, how work is done.

`plugin.settings` puts all sections together.
"""

from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

DEFAULT_FOLDER = Path.home() / ".local" / "share" / "hlip"
Seconds = Annotated[float, Field(ge=0)]
Days = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsFiles(Section):
    """PEM files for TLS; what a section needs of them, it says itself."""

    tls_certificate: str = ""
    tls_key: str = ""
    tls_ca: str = ""

    @model_validator(mode="after")
    def _key_of_what(self) -> "TlsFiles":
        if self.tls_key and not self.tls_certificate:
            raise ValueError("tls_key without tls_certificate: name the certificate that the key belongs to")
        return self


class SpoolSettings(Section):
    folder: Annotated[Path, AfterValidator(Path.expanduser)] = DEFAULT_FOLDER
    min_free_gigabytes: float = Field(1.0, ge=0)
    worker_min_free_gigabytes: float = Field(0.5, ge=0)


class IndexSettings(Section):
    url: SecretStr = SecretStr("")


class BrokerSettings(Section):
    url: SecretStr = SecretStr("embedded")

    @property
    def is_embedded(self) -> bool:
        """Whether it is a folder, which needs no server."""
        return self.url.get_secret_value() == "embedded"


class SettleSettings(Section):
    series_quiet_seconds: Seconds = 3
    study_quiet_seconds: Seconds = 10
    association_cap_seconds: Seconds = 120
    tick_seconds: float = Field(0.25, gt=0)


class RoutingRule(Section):
    """One row of the routing table: the first row that fits a series decides.

    `modality`, `body_part` and `description` are regular expressions, matched anywhere in the value and in
    any case; an empty one fits all.
    """

    action: Literal["analyse", "skip"] = "analyse"
    modality: str = ""
    body_part: str = ""
    description: str = ""
    min_age_years: float = 0
    max_age_years: float = 200
    priority: int = Field(50, ge=0, le=100)


DEFAULT_ROUTING = (RoutingRule(action="analyse", modality="^CT$", priority=20),)


class RoutingSettings(Section):
    rules: tuple[RoutingRule, ...] = DEFAULT_ROUTING


class ModelSettings(Section):
    bundle: str = "demo"
    device: str = "auto"
    threads: int = Field(0, ge=0)


def _known_zone(name: str) -> str:
    """Raises ValueError for a name that is in no table of time zones here."""
    try:
        return ZoneInfo(name).key if name else name
    except (KeyError, ValueError, OSError):  # not in the table, no name at all, a folder of the table
        raise ValueError(
            f"no time zone {name!r} is known here: give an IANA name such as Europe/Berlin; "
            "where the system has no table of them, install its package tzdata"
        ) from None


class ResultsSettings(Section):
    time_zone: Annotated[str, AfterValidator(_known_zone)] = ""
    findings_report: bool = True
    key_images: bool = True
    parametric_map: bool = False
    segmentation: bool = False
    withdraw_superseded: bool = True


class RetentionSettings(Section):
    """After how many days without anything new it goes, once its results are delivered; 0: never."""

    instances_days: Days = 7
    prepared_days: Days = 30
    results_days: Days = 365
    conflicting_days: Days = 90


class WorkerSettings(Section):
    lease_seconds: float = Field(30, gt=0)
    max_attempts: int = Field(3, ge=1)
    prepare_memory_gigabytes: float = Field(4.0, ge=0)
    prepare_timeout_seconds: Seconds = 300


class SearchSettings(Section):
    engine: Literal["embedded", "pgvector"] = "embedded"
    exact_below: int = Field(100_000, ge=0)
    effort: int = Field(200, ge=10, le=1000)
    series_embeddings: bool = False


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"
