"""Celery: one task a queue. A message carries nothing; the worker asks the index for the most urgent item.

So a lost message costs one ring of the scheduler, a repeated one finds nothing to do, and no broker ever holds
anything that names a study.
"""

import warnings
from pathlib import Path

import structlog
from celery import Celery
from celery.platforms import SecurityWarning
from kombu.exceptions import OperationalError

from plugin.bootstrap import Plugin
from plugin.settings import Settings
from plugin.work import WORK, work_once

log = structlog.get_logger("hlip.tasks")

EMBEDDED = "embedded"
POLLING_SECONDS = 0.05


def _broker(settings: Settings, folder: Path) -> dict:
    """The settings of the broker; the embedded one is a folder that needs no server (kombu's filesystem transport)."""
    url = settings.broker.url.get_secret_value()
    if url != EMBEDDED:
        return {"broker_url": url}
    inbox = folder / "messages"
    control = folder / "control"
    for path in (inbox, control):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "broker_url": "filesystem://localhost",
        "broker_transport_options": {
            "data_folder_in": str(inbox),
            "data_folder_out": str(inbox),
            "control_folder": str(control),
            "polling_interval": POLLING_SECONDS,
        },
    }


def celery_app(plugin: Plugin) -> Celery:
    """The Celery application with a task ``hlip.<queue>`` for each kind of work."""
    app = Celery("hlip")
    app.conf.update(
        **_broker(plugin.settings, plugin.spool.broker),
        broker_connection_retry_on_startup=True,
        task_ignore_result=True,
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        task_routes={f"hlip.{queue}": {"queue": queue} for queue in WORK},
    )
    for queue in WORK:
        _register(app, plugin, queue)
    return app


def _register(app: Celery, plugin: Plugin, queue: str) -> None:
    @app.task(name=f"hlip.{queue}")
    def task() -> None:
        work_once(plugin, queue)


class Bell:
    """Announces work. A broker that is away is no error: the next tick rings again."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def __call__(self, queue: str) -> None:
        try:
            self._app.send_task(f"hlip.{queue}", retry=False)
        except (OperationalError, OSError) as error:
            log.warning("the broker is away", queue=queue, cause=type(error).__name__)


def run_worker(plugin: Plugin, queues: tuple[str, ...]) -> None:
    """Work on `queues` in this process, one item at a time, until SIGTERM or SIGINT."""
    worker = celery_app(plugin).Worker(
        queues=list(queues),
        pool="solo",
        concurrency=1,
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # of root: the tasks take no pickles
        worker.start()
