"""Every setting, as a table: TOML file, overridable one by one as ``HLIP_SECTION__KEY``.

`deploy/hlip.toml` explains each in a sentence, and a test holds that file against these classes.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
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


class SpoolSettings(Section):
    folder: Annotated[Path, AfterValidator(Path.expanduser)] = DEFAULT_FOLDER
    min_free_gigabytes: float = Field(1.0, ge=0)


class ListenerSettings(Section):
    ae_title: str = Field("HLIP", min_length=1, max_length=16)
    host: str = "127.0.0.1"
    port: int = Field(11112, ge=0, le=65535)
    max_associations: int = Field(20, ge=1)
    max_pdu_length: int = Field(131072, ge=4096)
    network_timeout_seconds: Seconds = 60
    check_called_ae_title: bool = False
    calling_ae_titles: tuple[str, ...] = ()


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


class Destination(Section):
    """Where results go: a DICOMweb service (`url`), or a storage SCP (`host`, `port`, `ae_title`)."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    url: str = ""
    user: str = ""
    password: SecretStr = SecretStr("")
    token: SecretStr = SecretStr("")
    host: str = ""
    port: int = Field(104, ge=1, le=65535)
    ae_title: str = Field("", max_length=16)
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
    def _can_delete(self) -> "Destination":
        if self.delete_withdrawn == "dicomweb" and not self.url:
            raise ValueError(f"destination {self.name}: delete_withdrawn by dicomweb needs its url")
        if self.delete_withdrawn == "orthanc" and not self.orthanc:
            raise ValueError(f"destination {self.name}: delete_withdrawn by orthanc needs its orthanc_url")
        return self


class WorkerSettings(Section):
    lease_seconds: float = Field(30, gt=0)
    max_attempts: int = Field(3, ge=1)


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Settings(BaseSettings):
    """All sections. Later wins: defaults, the TOML file, ``HLIP_SECTION__KEY`` variables, arguments."""

    model_config = SettingsConfigDict(env_prefix="HLIP_", env_nested_delimiter="__", extra="forbid", frozen=True)

    spool: SpoolSettings = SpoolSettings()
    listener: ListenerSettings = ListenerSettings()
    index: IndexSettings = IndexSettings()
    broker: BrokerSettings = BrokerSettings()
    settle: SettleSettings = SettleSettings()
    routing: RoutingSettings = RoutingSettings()
    model: ModelSettings = ModelSettings()
    thresholds: dict[str, float] = {}
    results: ResultsSettings = ResultsSettings()
    delivery: DeliverySettings = DeliverySettings()
    destinations: tuple[Destination, ...] = ()
    workers: WorkerSettings = WorkerSettings()
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
