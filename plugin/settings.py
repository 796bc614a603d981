"""Every setting, as a table: TOML file, overridable one by one as ``HLIP_SECTION__KEY``.

`deploy/hlip.toml` explains each in a sentence, and a test holds that file against these classes. The sections
themselves are in `plugin.sections` (this machine), `sections_network` (what listens or connects), `sections_archive`
and `sections_signals`.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from plugin.sections import (
    DEFAULT_ROUTING,
    BrokerSettings,
    IndexSettings,
    LogSettings,
    ModelSettings,
    ResultsSettings,
    RetentionSettings,
    RoutingRule,
    RoutingSettings,
    SearchSettings,
    SettleSettings,
    SpoolSettings,
    WorkerSettings,
)
from plugin.sections_archive import ArchiveSettings
from plugin.sections_network import (
    AuditSettings,
    CommitmentSettings,
    DeliverySettings,
    Destination,
    ListenerSettings,
    OidcSettings,
    Requester,
    WebSettings,
    is_loopback,
)
from plugin.sections_signals import MetricsSettings, SignalReceiver

__all__ = [
    "DEFAULT_ROUTING",
    "ArchiveSettings",
    "AuditSettings",
    "CommitmentSettings",
    "Destination",
    "ListenerSettings",
    "LogSettings",
    "MetricsSettings",
    "OidcSettings",
    "Requester",
    "ResultsSettings",
    "RetentionSettings",
    "RoutingRule",
    "Settings",
    "SignalReceiver",
    "WebSettings",
    "is_loopback",
    "load_settings",
]


class Settings(BaseSettings):
    """All sections. Later wins: defaults, the TOML file, ``HLIP_SECTION__KEY`` variables, arguments."""

    model_config = SettingsConfigDict(env_prefix="HLIP_", env_nested_delimiter="__", extra="forbid", frozen=True)

    spool: SpoolSettings = SpoolSettings()
    listener: ListenerSettings = ListenerSettings()
    web: WebSettings = WebSettings()
    oidc: OidcSettings = OidcSettings()
    commitment: CommitmentSettings = CommitmentSettings()
    index: IndexSettings = IndexSettings()
    broker: BrokerSettings = BrokerSettings()
    settle: SettleSettings = SettleSettings()
    routing: RoutingSettings = RoutingSettings()
    model: ModelSettings = ModelSettings()
    thresholds: dict[str, float | Literal["off"]] = {}
    results: ResultsSettings = ResultsSettings()
    delivery: DeliverySettings = DeliverySettings()
    destinations: tuple[Destination, ...] = ()
    signals: tuple[SignalReceiver, ...] = ()
    retention: RetentionSettings = RetentionSettings()
    workers: WorkerSettings = WorkerSettings()
    archive: ArchiveSettings = ArchiveSettings()
    search: SearchSettings = SearchSettings()
    audit: AuditSettings = AuditSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _names_differ(self) -> "Settings":
        names = [destination.name for destination in self.destinations]
        if len(names) != len(set(names)):
            raise ValueError("two destinations have the same name")
        receivers = [receiver.name for receiver in self.signals]
        if len(receivers) != len(set(receivers)):
            raise ValueError("two signals have the same name")
        return self

    @property
    def index_url(self) -> str:
        """Where the index lies: as set, else SQLite in the data folder."""
        given = self.index.url.get_secret_value()
        return given or f"sqlite:///{self.spool.folder / 'index.sqlite'}"


def load_settings(path: Path | None = None) -> Settings:
    """Settings from a TOML file (or none) and the environment.

    Raises:
        FileNotFoundError: `path` was given and is no file.
        pydantic.ValidationError: a value or a name is wrong.
        tomllib.TOMLDecodeError: the file is not TOML.
        ValueError: a variable names a section that there is not.
    """
    _check_variables(os.environ)
    if path is None:
        return Settings()
    if not path.is_file():
        raise FileNotFoundError(f"no settings file at {path}")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=path)

    return FromFile()


def _check_variables(names: Iterable[str]) -> None:
    """Raises ValueError for HLIP_SECTION__KEY of no section, which would be passed over: other keys are checked."""
    for name in names:
        section, separator, _ = name.upper().partition("__")
        if separator and section.startswith("HLIP_") and section[5:].lower() not in Settings.model_fields:
            raise ValueError(f"the variable {name} sets nothing: there is no section {section[5:].lower()}")
