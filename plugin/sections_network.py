"""The sections of the settings that concern others: who may send to us, and whom we connect to."""

import ipaddress
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, IPvAnyNetwork, SecretStr, field_validator, model_validator

from plugin.sections import Seconds, Section, TlsFiles


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
    public_url: str = Field("", pattern=r"^(https?://[^/?#@\s]+)?$")
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    viewer_url: str = Field("", pattern=r"^(https?://[^\s\"'<>]*\{StudyInstanceUID\}[^\s\"'<>]*)?$")
    session_idle_minutes: float = Field(30, gt=0)
    session_hours: float = Field(12, gt=0)

    @field_validator("stow_token")
    @classmethod
    def _is_long(cls, token: SecretStr) -> SecretStr:
        if 0 < len(token.get_secret_value()) < 16:
            raise ValueError("web.stow_token is too easy to guess: 16 characters or more, please")
        return token

    @property
    def others_come(self) -> bool:
        """Whether more than this machine reaches the server: by its address, or through a proxy."""
        return bool(self.public_url) or not is_loopback(self.host)

    @model_validator(mode="after")
    def _nobody_unknown_stores(self) -> "WebSettings":
        if self.stow and self.others_come and not self.stow_token.get_secret_value():
            raise ValueError(
                f"on {self.public_url or self.host} anyone in the network could send studies by STOW-RS: set "
                "web.stow_token (or the variable HLIP_WEB__STOW_TOKEN) to a long secret that the senders know, or "
                'web.stow = false, or web.host = "127.0.0.1"'
            )
        return self


class OidcSettings(Section):
    """Sign-in by an OpenID Connect provider; without an issuer: none."""

    issuer: str = Field("", pattern=r"^(https?://\S+)?$")
    name: str = Field("Single sign-on", min_length=1)
    client_id: str = ""
    client_secret: SecretStr = SecretStr("")
    scopes: tuple[str, ...] = ("openid", "profile")
    name_claim: str = Field("preferred_username", min_length=1)
    role_claim: str = Field("roles", min_length=1)
    viewers: tuple[str, ...] = ("hlip-viewer",)
    operators: tuple[str, ...] = ("hlip-operator",)
    tls_ca: str = ""
    timeout_seconds: Seconds = 10

    @model_validator(mode="after")
    def _is_whole(self) -> "OidcSettings":
        if self.issuer and not self.client_id:
            raise ValueError("oidc.issuer needs oidc.client_id: the name by which the provider knows this page")
        if self.issuer and "openid" not in self.scopes:
            raise ValueError("oidc.scopes must hold openid")
        if self.issuer.startswith("http://") and not is_loopback(urlsplit(self.issuer).hostname or ""):
            raise ValueError("oidc.issuer must be an https:// address: who signs in is decided by what it answers")
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
