"""Celery: one task a queue. A message carries nothing; the worker asks the index for the most urgent item.

So a lost message costs one ring of the scheduler, a repeated one finds nothing to do, and no broker ever holds
anything that names a study.
"""

import os
import time
import uuid
import warnings
from pathlib import Path
from queue import Empty

import structlog
from celery import Celery
from celery import signals as celery_signals
from celery.platforms import EX_FAILURE, SecurityWarning
from celery.worker import state as worker_state
from kombu import Connection, Producer
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps, loads

from plugin.bootstrap import Plugin
from plugin.settings import Settings
from plugin.work import WORK, DeviceLost, work_once

log = structlog.get_logger("hlip.tasks")

POLLING_SECONDS = 0.05
AWAY_SECONDS = 2.0
"""Without a ring after a failed one: each may cost a connection's timeout, and the scheduler has other things to do."""
ENOUGH_RINGS = 200
"""Not taken yet, of one queue: more would wake no more workers, and would pile up where no one serves the queue."""
COUNT_SECONDS = 1.0
"""How long the broker's count of them is trusted."""


def _broker(settings: Settings, folder: Path) -> dict:
    """The settings of the broker; the embedded one is a folder that needs no server."""
    if not settings.broker.is_embedded:
        url = settings.broker.url.get_secret_value()
        return {"broker_url": url, "broker_transport_options": {"max_retries": 0}}  # of a ring; workers come back
    messages = folder / "messages"
    messages.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "broker_url": "folder://localhost",
        "broker_transport_options": {
            "data_folder_in": str(messages),
            "data_folder_out": str(messages),
            "polling_interval": POLLING_SECONDS,
        },
    }


class FolderChannel(filesystem.Channel):
    """kombu's folder of messages, made safe for several processes: a message comes and goes by a rename.

    kombu's own writes it in its place, where a worker may read the half of it, and keeps in one more file which queue
    hears what, alike. Ours need no such file: what is sent to an exchange goes to the queue of its name.
    """

    def _put(self, queue: str, payload: dict, **kwargs: object) -> None:  # type: ignore[override]
        path = Path(self.data_folder_out) / f"{time.time_ns()}-{uuid.uuid4().hex}.{queue}.msg"
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(dumps(payload).encode())
        part.rename(path)

    def _get(self, queue: str, timeout: float | None = None) -> dict:
        folder = Path(self.data_folder_in)
        for name in sorted(entry.name for entry in os.scandir(folder)):
            if name.startswith(".") or not name.endswith(f".{queue}.msg"):
                continue
            taken = folder / f".{name}.part"
            try:
                (folder / name).rename(taken)
            except FileNotFoundError:  # another worker has it
                continue
            payload = taken.read_bytes()
            taken.unlink()
            return loads(payload)
        raise Empty

    def get_table(self, exchange: str) -> list:
        return [filesystem.exchange_queue_t(exchange, "", exchange)]

    def _queue_bind(self, *args: object) -> None:
        """Nothing to keep."""

    def _delete(self, queue: str, *args: object, **kwargs: object) -> None:
        self._purge(queue)


class FolderTransport(filesystem.Transport):
    Channel = FolderChannel


TRANSPORT_ALIASES["folder"] = f"{__name__}:FolderTransport"
TRANSPORT_ALIASES |= dict.fromkeys(("redis", "rediss"), "plugin.redis_transport:RingTransport")


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
    @app.task(name=f"hlip.{queue}", shared=False)  # of this application only, should there be two in a process
    def task() -> None:
        try:
            work_once(plugin, queue)
        except DeviceLost:
            log.error("the device failed: this worker ends, for a new one to take its place")
            worker_state.should_stop = EX_FAILURE  # Celery ends after this task


def reach_broker(plugin: Plugin, *, seconds: float) -> None:
    """Raises OSError where a broker that is a server cannot be reached; its text names no password."""
    url = plugin.settings.broker.url.get_secret_value()
    with Connection(url, connect_timeout=seconds, transport_options={"max_retries": 0}) as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=seconds)
            connection.channel().close()
        except (OperationalError, *connection.connection_errors, *connection.channel_errors) as error:
            raise ConnectionError(f"the broker cannot be reached: {type(error).__name__}") from None


class Bell:
    """Announces work. A broker that is away is no error: it is left alone for a while, and work is rung for again."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._away_until = 0.0
        self._lying: dict[str, tuple[float, int]] = {}
        """By queue: when the rings that no one took yet were counted (monotonic), and how many they are by now."""

    def __call__(self, queue: str) -> bool:
        """Whether it rang; not where the broker is away, nor where enough rings wait to be taken."""
        now = time.monotonic()
        if now < self._away_until:
            return False
        counted, lying = self._lying.get(queue, (-COUNT_SECONDS, 0))
        if lying >= ENOUGH_RINGS and now - counted < COUNT_SECONDS:
            return False
        try:
            with self._app.producer_or_acquire() as producer:
                if now - counted >= COUNT_SECONDS:
                    counted, lying = now, self._count(queue, producer)
                if is_needed := lying < ENOUGH_RINGS:
                    self._app.send_task(f"hlip.{queue}", retry=False, producer=producer)
        except (OperationalError, OSError) as error:
            log.warning("the broker is away", queue=queue, cause=type(error).__name__)
            self._away_until = time.monotonic() + AWAY_SECONDS
            return False
        self._lying[queue] = counted, lying + is_needed
        return is_needed

    def _count(self, queue: str, producer: Producer) -> int:
        """How many rings lie in a queue, which is made where it is not there. Raises OperationalError."""
        connection = producer.connection
        try:
            # of one that was closed, kombu would make a channel of nothing
            connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=False)
            with connection.channel() as channel:
                return self._app.amqp.queues[queue].queue_declare(channel=channel).message_count
        except (*connection.connection_errors, *connection.channel_errors) as error:
            raise OperationalError(type(error).__name__) from error


def _leave_logging_alone(**_: object) -> None:
    """Heard by Celery, which then does not set up lines of its own beside ours (`plugin.bootstrap.configure`)."""


def run_worker(plugin: Plugin, queues: tuple[str, ...]) -> None:
    """Work on `queues` in this process, one item at a time, until SIGTERM or SIGINT."""
    celery_signals.setup_logging.connect(_leave_logging_alone)
    worker = celery_app(plugin).Worker(
        queues=list(queues),
        pool="solo",
        use_eventloop=False,  # with it, a task's acknowledgement may wait 10 s for its turn, and the next task with it
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
