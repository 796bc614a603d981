"""Every setting, as a table: TOML file, overridable one by one as ``HLIP_SECTION__KEY``.

`deploy/hlip.toml` explains each in a sentence, and a test holds that file against these classes.
"""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

DEFAULT_FOLDER = Path.home() / ".local" / "share" / "hlip"
Seconds = Annotated[float, Field(ge=0)]


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


class AllowedSender(Section):
    """An AE that may send, and the networks that it may send from; no addresses: from anywhere."""

    ae_title: str = Field(min_length=1, max_length=16)
    addresses: tuple[IPvAnyNetwork, ...] = ()


class ListenerSettings(TlsFiles):
    ae_title: str = Field("HLIP", min_length=1, max_length=16)
    host: str = "127.0.0.1"
    port: int = Field(11112, ge=0, le=65535)
    max_associations: int = Field(20, ge=1)
    max_pdu_length: int = Field(131072, ge=4096, le=16777216)
    max_object_gigabytes: float = Field(4.0, gt=0)
    network_timeout_seconds: Seconds = 60
    check_called_ae_title: bool = False
    calling_ae_titles: tuple[str, ...] = ()
    peers: tuple[AllowedSender, ...] = ()
    tls_require_certificate: bool = True

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "ListenerSettings":
        if self.tls_ca and not self.tls_certificate:
            raise ValueError("listener.tls_ca alone does not switch TLS on: set tls_certificate and tls_key too")
        if self.tls_certificate and self.tls_require_certificate and not self.tls_ca:
            raise ValueError(
                "listener: TLS with tls_require_certificate needs tls_ca, the authority of the senders' certificates"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class WebSettings(Section):
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    stow: bool = True
    stow_token: SecretStr = SecretStr("")
    max_instance_megabytes: float = Field(4096, gt=0)
    max_request_gigabytes: float = Field(16, gt=0)
    max_requests: int = Field(16, ge=1)
    timeout_seconds: Seconds = 60

    @field_validator("stow_token")
    @classmethod
    def _is_long(cls, token: SecretStr) -> SecretStr:
        if 0 < len(token.get_secret_value()) < 16:
            raise ValueError("web.stow_token is too easy to guess: 16 characters or more, please")
        return token

    @model_validator(mode="after")
    def _nobody_unknown_stores(self) -> "WebSettings":
        if self.stow and not is_loopback(self.host) and not self.stow_token.get_secret_value():
            raise ValueError(
                f"on {self.host} anyone in the network could send studies by STOW-RS: set web.stow_token (or the "
                "variable HLIP_WEB__STOW_TOKEN) to a long secret that the senders know, or web.stow = false, or "
                'web.host = "127.0.0.1"'
            )
        return self


class Requester(TlsFiles):
    """An AE that may ask for storage commitment, and where its answer goes."""

    ae_title: str = Field(min_length=1, max_length=16)
    host: str
    port: int = Field(104, ge=1, le=65535)
    tls: bool = False
    tls_check_hostname: bool = True


class CommitmentSettings(Section):
    enabled: bool = False
    requesters: tuple[Requester, ...] = ()
    first_retry_seconds: Seconds = 5
    longest_retry_seconds: Seconds = 900
    give_up_days: float = Field(7, gt=0)
    timeout_seconds: Seconds = 30


class IndexSettings(Section):
    url: SecretStr = SecretStr("")


class BrokerSettings(Section):
    url: SecretStr = SecretStr("embedded")


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
    bundle: str = "untrained"
    device: str = "auto"
    threads: int = Field(0, ge=0)


class ResultsSettings(Section):
    findings_report: bool = True
    key_images: bool = True
    parametric_map: bool = False
    segmentation: bool = False
    withdraw_superseded: bool = True


class DeliverySettings(Section):
    send_results_of_untrained_or_phantom_models: bool = False
    first_retry_seconds: Seconds = 5
    longest_retry_seconds: Seconds = 900
    timeout_seconds: Seconds = 60


class Destination(TlsFiles):
    """Where results go: a DICOMweb service (`url`), or a storage SCP (`host`, `port`, `ae_title`)."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    url: str = ""
    user: str = ""
    password: SecretStr = SecretStr("")
    token: SecretStr = SecretStr("")
    host: str = ""
    port: int = Field(104, ge=1, le=65535)
    ae_title: str = Field("", max_length=16)
    tls: bool = False
    tls_check_hostname: bool = True
    delete_withdrawn: Literal["never", "dicomweb", "orthanc"] = "never"
    orthanc_url: str = ""

    @property
    def orthanc(self) -> str:
        """Where Orthanc's REST API is: as set, else the parent of its DICOMweb address."""
        return (self.orthanc_url or self.url.rstrip("/").rpartition("/")[0]).rstrip("/")

    @model_validator(mode="after")
    def _one_way_in(self) -> "Destination":
        if bool(self.url) == bool(self.host):
            raise ValueError(f"destination {self.name}: give either url (DICOMweb) or host (DIMSE)")
        if self.host and not self.ae_title:
            raise ValueError(f"destination {self.name}: a DIMSE destination needs its ae_title")
        return self

    @model_validator(mode="after")
    def _tls_is_used(self) -> "Destination":
        """Certificates that would not be used are a connection that someone takes for a secure one."""
        uses_tls = self.tls if self.host else self.url.startswith("https://")
        if (self.tls or self.tls_ca or self.tls_certificate) and not uses_tls:
            switch = "tls = true" if self.host else "an https:// url"
            raise ValueError(f"destination {self.name}: TLS is set up but not used: it needs {switch}")
        return self

    @model_validator(mode="after")
    def _can_delete(self) -> "Destination":
        if self.delete_withdrawn == "dicomweb" and not self.url:
            raise ValueError(f"destination {self.name}: delete_withdrawn by dicomweb needs its url")
        if self.delete_withdrawn == "orthanc" and not self.orthanc:
            raise ValueError(f"destination {self.name}: delete_withdrawn by orthanc needs its orthanc_url")
        return self


Days = Annotated[float, Field(ge=0)]


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


class AuditSettings(TlsFiles):
    """The audit trail (PS3.15 Annex A): into a file, to a syslog receiver, or both; neither: off."""

    file: str = ""
    syslog_host: str = ""
    syslog_port: int = Field(6514, ge=1, le=65535)
    syslog_transport: Literal["tls", "tcp", "udp"] = "tls"
    source_id: str = Field("hlip", min_length=1)
    enterprise_site_id: str = ""
    patient_ids: bool = False

    @model_validator(mode="after")
    def _tls_is_used(self) -> "AuditSettings":
        if (self.tls_ca or self.tls_certificate) and not (self.syslog_host and self.syslog_transport == "tls"):
            raise ValueError('audit: TLS is set up but not used: it needs syslog_host and syslog_transport = "tls"')
        return self


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Settings(BaseSettings):
    """All sections. Later wins: defaults, the TOML file, ``HLIP_SECTION__KEY`` variables, arguments."""

    model_config = SettingsConfigDict(env_prefix="HLIP_", env_nested_delimiter="__", extra="forbid", frozen=True)

    spool: SpoolSettings = SpoolSettings()
    listener: ListenerSettings = ListenerSettings()
    web: WebSettings = WebSettings()
    commitment: CommitmentSettings = CommitmentSettings()
    index: IndexSettings = IndexSettings()
    broker: BrokerSettings = BrokerSettings()
    settle: SettleSettings = SettleSettings()
    routing: RoutingSettings = RoutingSettings()
    model: ModelSettings = ModelSettings()
    thresholds: dict[str, float] = {}
    results: ResultsSettings = ResultsSettings()
    delivery: DeliverySettings = DeliverySettings()
    destinations: tuple[Destination, ...] = ()
    retention: RetentionSettings = RetentionSettings()
    workers: WorkerSettings = WorkerSettings()
    audit: AuditSettings = AuditSettings()
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
    """
    if path is None:
        return Settings()
    if not path.is_file():
        raise FileNotFoundError(f"no settings file at {path}")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=path)

    return FromFile()
