"""Other people's servers on free ports, which may be killed with -9 and come back at the same address.

Each keeps all that it writes in a folder of its own. `missing` says what to install where one is not there.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests
from kombu import Connection

from .nursery import Born

START_SECONDS = 120.0
WORK_QUEUES = ("prepare", "analyse", "deliver")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], Any], what: str, *, seconds: float = START_SECONDS, every: float = 0.05) -> None:
    """Raises TimeoutError that says `what` was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(every)


def descendants(pid: int) -> Iterator[int]:
    """A process and all that it has started (Linux)."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from descendants(int(child))


def kill(process: subprocess.Popen | Born) -> None:
    """SIGKILL to a process of ours and all its descendants, stopped first so that none starts another meanwhile."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in list(descendants(process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
    process.wait()


class Server:
    """One server. Subclasses say how it is started, and when it answers."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.port = free_port()
        self._process: subprocess.Popen | None = None
        self._set_up()

    @classmethod
    def missing(cls) -> str:
        """Why it cannot run here; empty where it can."""
        raise NotImplementedError

    def _set_up(self) -> None:
        """What is done once, before the first start."""

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def _answers(self) -> bool:
        return is_open(self.port)

    def start(self) -> None:
        """Raises TimeoutError where it does not come up."""
        with (self.folder / "output.log").open("ab") as log:
            end = time.monotonic() + START_SECONDS
            while True:
                self._process = subprocess.Popen(
                    self._command(), env=self._environment(), stdout=log, stderr=log, cwd=self.folder
                )
                while self._process.poll() is None and not self._answers():
                    if time.monotonic() > end:
                        raise TimeoutError(f"{self.name} does not answer; see {self.folder}")
                    time.sleep(0.05)
                if self._process.poll() is None:
                    return
                if time.monotonic() > end:
                    raise TimeoutError(f"{self.name} does not start; see {self.folder}")
                time.sleep(0.3)  # what its killed predecessor held may not be free yet

    def kill(self) -> None:
        """As by kill -9, all its processes at once."""
        if self._process is not None:
            kill(self._process)
            self._process = None

    def stop(self) -> None:
        """It need not end well: nothing of it is kept."""
        self.kill()

    def wipe(self) -> None:
        """Make it as new."""


class Orthanc(Server):
    """A PACS with DICOMweb, as it comes (SQLite, files)."""

    name = "Orthanc"
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")

    @classmethod
    def missing(cls) -> str:
        there = shutil.which("Orthanc") and cls.plugin.exists()
        return "" if there else "Orthanc is not installed (Debian: orthanc, orthanc-dicomweb)"

    def _set_up(self) -> None:
        storage = str(self.folder / "storage")
        configuration = {
            "StorageDirectory": storage,
            "IndexDirectory": storage,
            "DicomPort": free_port(),
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "UnknownSopClassAccepted": True,
            "Plugins": [str(self.plugin)],
            "DicomWeb": {"Enable": True},
        }
        (self.folder / "orthanc.json").write_text(json.dumps(configuration))

    def _command(self) -> list[str]:
        return ["Orthanc", str(self.folder / "orthanc.json")]

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def _answers(self) -> bool:
        with suppress(requests.RequestException):
            return requests.get(self._url("/system"), timeout=2).ok
        return False

    def _get(self, path: str) -> requests.Response:
        answer = requests.get(self._url(path), timeout=30)
        answer.raise_for_status()
        return answer

    def objects(self) -> Iterator[tuple[str, str, bytes]]:
        """(StudyInstanceUID, SOPInstanceUID, file) of all that is stored."""
        for study in self._get("/studies?expand").json():
            for instance in self._get(f"/studies/{study['ID']}/instances").json():
                content = self._get(f"/instances/{instance['ID']}/file").content
                yield study["MainDicomTags"]["StudyInstanceUID"], instance["MainDicomTags"]["SOPInstanceUID"], content

    def wipe(self) -> None:
        for study in self._get("/studies").json():
            requests.delete(self._url(f"/studies/{study}"), timeout=30).raise_for_status()


class PostgreSQL(Server):
    """A database server with its durability as it comes (fsync on)."""

    name = "PostgreSQL"

    @staticmethod
    def _tools() -> list[Path]:
        return sorted(Path("/usr/lib/postgresql").glob("*/bin"))

    @classmethod
    def missing(cls) -> str:
        there = cls._tools() and (os.getuid() or shutil.which("runuser"))
        return "" if there else "PostgreSQL is not installed (Debian: postgresql)"

    def _as_user(self, tool: str, *arguments: str) -> list[str]:
        """It refuses to run as root."""
        switch = [] if os.getuid() else ["runuser", "-u", "postgres", "--"]
        return [*switch, str(self._tools()[-1] / tool), *arguments]

    def _set_up(self) -> None:
        self._database = ""
        self._count = 0
        if not os.getuid():
            self.folder.parent.chmod(0o711)
            shutil.chown(self.folder, "postgres")
        initdb = self._as_user("initdb", "-D", str(self.folder / "db"), "-A", "trust", "-U", "hlip")
        subprocess.run(initdb, check=True, capture_output=True, cwd=self.folder)

    def _command(self) -> list[str]:
        return self._as_user(
            "postgres", "-D", str(self.folder / "db"), "-p", str(self.port), "-k", str(self.folder)
        )  # fmt: skip

    def _client(self, tool: str, *arguments: str) -> bool:
        command = self._as_user(tool, "-h", "127.0.0.1", "-p", str(self.port), "-U", "hlip", *arguments)
        return subprocess.run(command, capture_output=True, check=False, cwd=self.folder).returncode == 0

    def _answers(self) -> bool:
        return is_open(self.port) and self._client("pg_isready", "-d", "postgres")

    def wipe(self) -> None:
        """A fresh database; the one before goes."""
        if self._database:
            self._client("dropdb", "--force", self._database)
        self._count += 1
        self._database = f"round{self._count}"
        if not self._client("createdb", self._database):
            raise OSError(f"PostgreSQL makes no database; see {self.folder}")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://hlip@127.0.0.1:{self.port}/{self._database}"


class RabbitMQ(Server):
    name = "RabbitMQ"
    script = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

    @classmethod
    def missing(cls) -> str:
        return "" if cls.script.exists() else "RabbitMQ is not installed (Debian: rabbitmq-server)"

    def _set_up(self) -> None:
        self._epmd_port = free_port()
        self._dist_port = free_port()
        (self.folder / "plugins").write_text("[].\n")

    def _command(self) -> list[str]:
        return [str(self.script)]

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOME": str(self.folder),  # where Erlang keeps its cookie
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"faults-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "none"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }

    def stop(self) -> None:
        super().stop()
        if epmd := next(iter(sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))), None):
            subprocess.run([epmd, "-port", str(self._epmd_port), "-kill"], capture_output=True, check=False)

    def wipe(self) -> None:
        """Without the queues of the round before."""
        with Connection(self.url, connect_timeout=10) as connection:
            for queue in WORK_QUEUES:
                connection.default_channel.queue_delete(queue)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"


class Redis(Server):
    """One that keeps nothing on disk: a kill costs it every message."""

    name = "Redis"

    @classmethod
    def missing(cls) -> str:
        there = shutil.which("redis-server") and shutil.which("redis-cli")
        return "" if there else "Redis is not installed (Debian: redis-server)"

    def _command(self) -> list[str]:
        return [
            "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            "--dir", str(self.folder),
        ]  # fmt: skip

    def wipe(self) -> None:
        subprocess.run(["redis-cli", "-p", str(self.port), "flushall"], check=True, capture_output=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


SERVERS: dict[str, type[Server]] = {
    "orthanc": Orthanc,
    "postgresql": PostgreSQL,
    "rabbitmq": RabbitMQ,
    "redis": Redis,
}
