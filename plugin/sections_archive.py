"""The section [archive] of the settings: the PACS whose past is scanned, and how hard it may be asked."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from plugin.sections import Seconds, TlsFiles

LONGEST_RETRY_AFTER_SECONDS = 3600.0
"""What a PACS may ask for with Retry-After; more is taken as this."""
_DAYS = "Mon|Tue|Wed|Thu|Fri|Sat|Sun"
HOURS = re.compile(
    rf"(?:(?P<first_day>{_DAYS})(?:-(?P<last_day>{_DAYS}))? )?"
    r"(?P<start>(?:[01]\d|2[0-3]):[0-5]\d)-(?P<end>(?:[01]\d|2[0-3]):[0-5]\d|24:00)"
)
"""``07:00-19:00``, ``Mon-Fri 07:00-19:00``, ``Sat 22:00-06:00`` (until the morning of the day after)."""


def _check_hours(text: str) -> str:
    if not HOURS.fullmatch(text):
        raise ValueError("hours are written 07:00-19:00, or Mon-Fri 07:00-19:00")
    return text


Hours = Annotated[str, AfterValidator(_check_hours)]


class ArchiveSettings(TlsFiles):
    """Where studies of the past are found and fetched: by DICOMweb (`url`), by DIMSE (`host`), or either."""

    url: str = ""
    user: str = ""
    password: SecretStr = SecretStr("")
    token: SecretStr = SecretStr("")
    host: str = ""
    port: int = Field(104, ge=1, le=65535)
    ae_title: str = Field("", max_length=16)
    tls: bool = False
    tls_check_hostname: bool = True
    retrieve: Literal["auto", "dicomweb", "move", "get"] = "auto"
    calling_ae_title: str = Field("HLIP", min_length=1, max_length=16)
    move_ae_title: str = Field("HLIPSCAN", min_length=1, max_length=16)
    move_host: str = "127.0.0.1"
    move_port: int = Field(11113, ge=0, le=65535)
    page: int = Field(200, ge=2)
    priority: int = Field(80, ge=67, le=100)
    parallel: int = Field(2, ge=1, le=32)
    look_ahead: int = Field(8, ge=1)
    studies_per_hour: float = Field(0, ge=0)
    megabytes_per_second: float = Field(0, ge=0)
    not_during: tuple[Hours, ...] = ()
    max_attempts: int = Field(5, ge=1)
    first_retry_seconds: Seconds = 5
    longest_retry_seconds: Seconds = 900
    timeout_seconds: float = Field(60, gt=0)
    lease_seconds: float = Field(30, gt=0)

    @property
    def way(self) -> Literal["dicomweb", "move", "get"]:
        """How studies are fetched. Raises ValueError where the settings do not say from where."""
        way = ("dicomweb" if self.url else "move") if self.retrieve == "auto" else self.retrieve
        if way == "dicomweb" and not self.url:
            raise ValueError("settings, section [archive]: DICOMweb needs the url of the PACS")
        if way != "dicomweb" and not (self.host and self.ae_title):
            raise ValueError("settings, section [archive]: name the PACS by its url, or by host, port and ae_title")
        return way

    @model_validator(mode="after")
    def _tls_is_used(self) -> "ArchiveSettings":
        """Certificates that would not be used are a connection that someone takes for a secure one."""
        uses_tls = (bool(self.host) and self.tls) or self.url.startswith("https://")
        if (self.tls or self.tls_ca or self.tls_certificate) and not uses_tls:
            raise ValueError("archive: TLS is set up but not used: it needs tls = true, or an https:// url")
        return self
