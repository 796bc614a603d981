"""The composition root: settings in, the parts of a running plugin out. Nothing else puts them together."""

import fcntl
import logging
import subprocess
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pydicom
import structlog

from hlip_core.errors import InputError
from plugin.settings import LogSettings, Settings
from plugin.spool import Spool

if TYPE_CHECKING:
    from ssl import SSLContext

    from hlip_core.bundle import Bundle
    from plugin.audit import Trail
    from plugin.delivery import Outbox
    from plugin.handover import Service
    from plugin.index.database import Database
    from plugin.sandbox import Sandbox
    from plugin.settings import SignalReceiver
    from plugin.signals.switchboard import Switchboard

DEMO, UNTRAINED = "demo", "untrained"
"""Bundles that need no folder of their own."""


def bundle_folder(setting: str) -> Path:
    """The folder that `model.bundle` names; that of the demo bundle is where the package is installed."""
    return Path(str(files("hlip_core") / DEMO)) if setting == DEMO else Path(setting).expanduser()


LINE: tuple[structlog.typing.Processor, ...] = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso"),
    structlog.processors.format_exc_info,
)
"""What every line of the log has besides its own."""


def configure(settings: LogSettings) -> None:
    """Logging, and the libraries' manners, for this process.

    Logs carry UIDs and counts, never what names a patient: libraries that print data sets stay quiet. Values that
    break their VR's rules are read as they are; what we write is held to the rules.
    """
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    warnings.filterwarnings("ignore", module="pydicom|pynetdicom")  # they quote what was sent
    structlog.configure(
        processors=[*LINE, _renderer(settings)],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    for library in ("pydicom", "pynetdicom", "dicomweb_client", "highdicom", "retrying"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def configure_libraries(settings: LogSettings) -> None:
    """What libraries log or warn of goes into lines like ours, so that a log of JSON is JSON throughout."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(settings)],
        foreign_pre_chain=LINE,
    )
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)


def _renderer(settings: LogSettings) -> structlog.typing.Processor:
    if settings.format == "json":
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())


class Plugin:
    """The parts, each made when it is first needed: a role pays only for what it uses."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def spool(self) -> Spool:
        spool = self.settings.spool
        return Spool(
            spool.folder,
            min_free_gigabytes=spool.min_free_gigabytes,
            worker_min_free_gigabytes=spool.worker_min_free_gigabytes,
        )

    @cached_property
    def database(self) -> "Database":
        from plugin.index.database import Database

        return Database(self.settings.index_url, lock=self.spool / "index.lock")

    @property
    def services(self) -> "list[Service]":
        """What the listener offers besides storage and verification."""
        if not self.settings.commitment.enabled:
            return []
        from plugin import commitment

        return [commitment.service(self.settings.commitment, self.spool)]

    def reporting_commitment(self) -> AbstractContextManager[None]:
        """Answers to requests for storage commitment, in the background of the block, where they are taken."""
        settings = self.settings
        if not settings.commitment.enabled:
            return nullcontext()
        from plugin.commitment_report import Reporter

        reporter = Reporter(settings.commitment, self.spool, self.database, calling_ae_title=settings.listener.ae_title)
        return reporter.in_background()

    @cached_property
    def outbox(self) -> "Outbox":
        from plugin.delivery import Outbox

        return Outbox.from_settings(self.settings)

    @cached_property
    def switchboard(self) -> "Switchboard":
        """Raises plugin.tls.TlsError, plugin.signals.template.TemplateFault."""
        from plugin.signals.switchboard import Switchboard

        return Switchboard.from_settings(self.settings)

    def check_signals(self) -> None:
        """Raises plugin.tls.TlsError, and TemplateFault for a template that cannot be filled in."""
        if self.settings.signals:
            _ = self.switchboard

    @cached_property
    def audit(self) -> "Trail":
        from plugin.audit import Trail

        return Trail(self.settings.audit, self.spool / "audit", ae_title=self.settings.listener.ae_title)

    @property
    def ssl_context(self) -> "SSLContext | None":
        """The listener's, where the settings name a certificate. Raises plugin.tls.TlsError."""
        from plugin import tls

        settings = self.settings.listener
        if not settings.tls_certificate:
            return None
        return tls.server_context(settings, require_certificate=settings.tls_require_certificate)

    def check_certificates(self) -> None:
        """Raises plugin.tls.TlsError where a file that the settings name for TLS cannot be used."""
        from plugin import tls

        _ = self.ssl_context
        for peer in (*self.settings.destinations, *self.settings.signals, self.settings.audit):
            if peer.tls_ca or peer.tls_certificate:
                tls.client_context(peer)

    @cached_property
    def sandbox(self) -> "Sandbox":
        from plugin.sandbox import Sandbox

        workers = self.settings.workers
        return Sandbox(
            memory_gigabytes=workers.prepare_memory_gigabytes, timeout_seconds=workers.prepare_timeout_seconds
        )

    @cached_property
    def bundle(self) -> "Bundle":
        """The model bundle of the settings.

        Raises:
            hlip_core.errors.BundleError: it cannot be loaded.
            ValueError: a threshold of the settings names no finding of it, or is none.
        """
        from hlip_core.bundle import load_bundle

        bundle = load_bundle(self._bundle_path())
        labels = {finding.label for finding in bundle.findings.findings}
        if unknown := sorted(self.settings.thresholds.keys() - labels):
            raise ValueError(
                f"thresholds for {', '.join(unknown)}, which {bundle.name} does not know; "
                f"it knows {', '.join(sorted(labels))}"
            )
        try:
            bundle.thresholds(self.settings.thresholds)
        except InputError as error:
            raise ValueError(f"settings, [thresholds]: {error}") from None
        for receiver in self.settings.signals:
            named = receiver.findings if isinstance(receiver.findings, tuple) else ()
            if unknown := sorted(set(named) - labels):
                raise ValueError(
                    f"signal {receiver.name} is about {', '.join(unknown)}, which {bundle.name} does not know"
                )
        return bundle

    def _bundle_path(self) -> Path:
        """Where the bundle lies. The untrained one is made on first use, by a process that may load torch for it."""
        name = self.settings.model.bundle
        if name != UNTRAINED:
            return bundle_folder(name)
        path = self.spool.models / f"{UNTRAINED}-{version('hlip-pacs')}"
        with (self.spool.models / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_dir():
                make = "import sys; from hlip_core.bundle import write_untrained_bundle as w; w(sys.argv[1])"
                subprocess.run([sys.executable, "-P", "-c", make, str(path)], check=True)
        return path

    @cached_property
    def device(self) -> str:
        """`cuda` where there is one and the settings say ``auto``. Sets torch's number of threads."""
        import torch

        if threads := self.settings.model.threads:
            torch.set_num_threads(threads)
        wanted = self.settings.model.device
        return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted

    @cached_property
    def installation_uid(self) -> str:
        return self.spool.installation_uid()

    def now(self) -> datetime:
        """The time in the zone of the site: that of the settings, else the machine's."""
        zone = self.settings.results.time_zone
        return datetime.now(UTC).astimezone(ZoneInfo(zone) if zone else None)

    def holds_signals_to(self, receiver: "SignalReceiver") -> bool:
        """Whether a receiver is told nothing, since its setting does not let out what an unproven model says."""
        return self.bundle.status != "trained" and not receiver.send_results_of_untrained_or_phantom_models

    @property
    def holds_results(self) -> bool:
        """Whether results stay here, since no setting lets those of an unproven model out."""
        allowed = self.settings.delivery.send_results_of_untrained_or_phantom_models
        return self.bundle.status != "trained" and not allowed
