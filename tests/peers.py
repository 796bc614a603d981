"""Real peers on free ports of 127.0.0.1: Orthanc, dcmtk's tools, PostgreSQL, RabbitMQ, Redis.

Each skips the test where it is not installed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
FORWARD_ALL = """
function OnStoredInstance(instanceId, tags, metadata)
   SendToModality(instanceId, 'hlip')
end
"""
OWN = Path(sys.prefix) / "bin"
SYSTEM = os.pathsep.join(path for path in os.environ["PATH"].split(os.pathsep) if Path(path) != OWN)
"""Where tools are looked for: pynetdicom brings commands of the same names as dcmtk's into the environment."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Wait for a true value, and give it back; fail with `what` was waited for."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds} s in vain for {what}")
        time.sleep(0.05)
    return value


def needs(tool: str, package: str) -> str:
    """The path of a tool; the test is skipped where it is missing."""
    path = shutil.which(tool, path=SYSTEM)
    if path is None:
        pytest.skip(f"{tool} is not installed (Debian: {package})")
    return path


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc."""

    http_port: int
    dicom_port: int
    log: Path
    ae_title: str = "ORTHANC"

    @property
    def dicomweb(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def get(self, path: str) -> Any:
        answer = requests.get(f"http://127.0.0.1:{self.http_port}{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def find(self, level: str, **query: str) -> list[dict[str, Any]]:
        """Resources of a level that match, expanded."""
        answer = requests.post(
            f"http://127.0.0.1:{self.http_port}/tools/find",
            json={"Level": level, "Query": query, "Expand": True},
            timeout=30,
        )
        answer.raise_for_status()
        return answer.json()

    def series(self, study_instance_uid: str, modality: str) -> list[dict[str, Any]]:
        found = self.find("Series", StudyInstanceUID=study_instance_uid, Modality=modality)
        return sorted(found, key=lambda s: int(s["MainDicomTags"].get("SeriesNumber") or 0))

    def file(self, instance_id: str) -> bytes:
        url = f"http://127.0.0.1:{self.http_port}/instances/{instance_id}/file"
        return requests.get(url, timeout=30).content

    def store(self, content: bytes) -> None:
        url = f"http://127.0.0.1:{self.http_port}/instances"
        requests.post(url, data=content, timeout=60).raise_for_status()


@contextmanager
def orthanc(folder: Path, *, forward_to_port: int | None = None) -> Iterator[Orthanc]:
    """An Orthanc with DICOMweb and DIMSE; with `forward_to_port` it sends all that it stores on to HLIP there."""
    needs("Orthanc", "orthanc")
    if not DICOMWEB_PLUGIN.exists():
        pytest.skip("Orthanc's DICOMweb plugin is not installed (Debian: orthanc-dicomweb)")
    folder.mkdir(parents=True, exist_ok=True)
    http_port, dicom_port = free_port(), free_port()
    configuration: dict[str, Any] = {
        "Name": "TESTPACS",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "DicomAlwaysAllowStore": True,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "UnknownSopClassAccepted": True,
        "StableAge": 1,
        "Plugins": [str(DICOMWEB_PLUGIN)],
        "DicomWeb": {"Enable": True},
    }
    if forward_to_port is not None:
        script = folder / "forward.lua"
        script.write_text(FORWARD_ALL)
        configuration["LuaScripts"] = [str(script)]
        configuration["DicomModalities"] = {"hlip": ["HLIP", "127.0.0.1", forward_to_port]}
    file, log = folder / "orthanc.json", folder / "orthanc.log"
    file.write_text(json.dumps(configuration))
    with log.open("wb") as output:
        process = subprocess.Popen(["Orthanc", str(file)], stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: is_open(http_port) and is_open(dicom_port), "Orthanc to start", 60)
        yield Orthanc(http_port, dicom_port, log)
    finally:
        process.terminate()
        process.wait(timeout=30)


QUERY_RETRIEVE = """NetworkTCPPort = {port}
MaxPDUSize = 65536
MaxAssociations = 16
HostTable BEGIN
scan = (HLIPSCAN, 127.0.0.1, {move_port})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
QRSCP {folder} RW (1000, 1024mb) ANY
AETable END
"""


@contextmanager
def dcmqrscp(folder: Path, *, move_port: int) -> Iterator[int]:
    """dcmtk's archive, QRSCP, that C-MOVE lets send to HLIPSCAN at `move_port`; its port."""
    tool = needs("dcmqrscp", "dcmtk")
    port, database = free_port(), folder / "database"
    database.mkdir(parents=True)
    (folder / "dcmqrscp.cfg").write_text(QUERY_RETRIEVE.format(port=port, move_port=move_port, folder=database))
    with (folder / "dcmqrscp.log").open("wb") as output:
        server = subprocess.Popen([tool, "-v", "-c", folder / "dcmqrscp.cfg"], stdout=output, stderr=output)
    try:
        wait_until(lambda: is_open(port), "dcmqrscp to start")
        yield port
    finally:
        server.terminate()
        server.wait(30)


def dcmsend(port: int, *paths: Path, calling: str = "MODALITY", host: str = "127.0.0.1") -> str:
    """Send files or folders by dcmtk's dcmsend; returns its report, fails where an instance was not taken."""
    command = [needs("dcmsend", "dcmtk"), "-v", "-nh", "-aet", calling, "-aec", "HLIP", host, str(port)]
    done = subprocess.run(
        [*command, "+sd", "+r", *map(str, paths)], capture_output=True, text=True, errors="replace", check=False
    )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    return report


def storescu(port: int, paths: Sequence[Path], *options: str) -> subprocess.CompletedProcess[str]:
    """Send files by dcmtk's storescu, whatever the peer answers."""
    command = [needs("storescu", "dcmtk"), "-v", "-aec", "HLIP", *options, "127.0.0.1", str(port)]
    return subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, errors="replace", check=False)


def dciodvfy_errors(path: Path) -> set[str]:
    """The errors, not the warnings, that dicom3tools' validator finds in a file."""
    done = subprocess.run(
        [needs("dciodvfy", "dicom3tools"), str(path)], capture_output=True, text=True, errors="replace", check=False
    )
    return {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")}


POSTGRESQL = Path("/usr/lib/postgresql")


@contextmanager
def postgresql_server() -> Iterator[str]:
    """A PostgreSQL server; the URL of its database ``postgres``. Its folder is not below pytest's, which only the user
    who runs the tests may enter: the server runs as another.
    """
    tools = sorted(POSTGRESQL.glob("*/bin"))
    if not tools or shutil.which("runuser") is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="hlip-postgresql-"))
    shutil.chown(folder, "postgres")
    as_user = ["runuser", "-u", "postgres", "--"]
    initdb = [tools[-1] / "initdb", "-D", folder / "db", "-A", "trust", "-U", "hlip", "-N"]
    subprocess.run([*as_user, *initdb], check=True, capture_output=True, cwd=folder)
    with (folder / "server.log").open("wb") as output:
        server = subprocess.Popen(
            [*as_user, tools[-1] / "postgres", "-D", folder / "db", "-p", str(port), "-k", folder, "-F"],
            stderr=output,
            cwd=folder,
        )
    try:
        wait_until(lambda: is_open(port), "PostgreSQL to start")
        yield f"postgresql+psycopg://hlip@127.0.0.1:{port}/postgres"
    finally:
        pid = int((folder / "db" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGINT)  # fast shutdown: it does not wait for its clients
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


@contextmanager
def rabbitmq_server(folder: Path) -> Iterator[str]:
    """A RabbitMQ node of its own, with all that it writes in `folder`; its URL."""
    if not RABBITMQ.exists():
        pytest.skip("RabbitMQ is not installed (Debian: rabbitmq-server)")
    port, epmd_port = free_port(), free_port()
    (folder / "plugins").write_text("[].\n")
    environment = {
        **os.environ,
        "HOME": str(folder),  # where Erlang keeps its cookie
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"hlip-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
    }
    with (folder / "output.log").open("wb") as output:
        server = subprocess.Popen([RABBITMQ], env=environment, cwd=folder, stdout=output, stderr=output)
    try:
        wait_until(lambda: server.poll() is None and is_open(port), "RabbitMQ to start", 180)
        yield f"amqp://guest:guest@127.0.0.1:{port}//"
    finally:
        server.terminate()
        server.wait(60)
        if epmd := next(iter(sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))), None):
            subprocess.run([epmd, "-port", str(epmd_port), "-kill"], capture_output=True, check=False)


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis server that keeps nothing; its URL."""
    port = free_port()
    command = [needs("redis-server", "redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_open(port), "Redis to start")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(30)
