"""Listener and scheduler on one host, workers on another: they share the index, the broker and the spool, no more."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hosts import Host, reachable, two_hosts
from peers import dcmsend, postgresql_server, rabbitmq_server, redis_server, wait_until
from plugin.index.database import Database
from plugin.index.overview import overview
from road import head_ct, tiny_bundle

HLIP = Path(sys.executable).parent / "hlip"
PORT = 11112


def settings(host: Host, bundle: Path, *, index: str, broker: str) -> dict[str, str]:
    """A host's own: the same servers by the addresses that it knows, the spool where it is mounted there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HLIP_")}
    return kept | {
        "HOME": str(host.disk),
        "TMPDIR": str(host.disk),
        "HLIP_SPOOL__FOLDER": str(host.disk / "shared"),
        "HLIP_INDEX__URL": index,
        "HLIP_BROKER__URL": broker,
        "HLIP_MODEL__BUNDLE": str(bundle),
        "HLIP_LISTENER__HOST": host.address,
        "HLIP_SETTLE__SERIES_QUIET_SECONDS": "0.3",
        "HLIP_SETTLE__STUDY_QUIET_SECONDS": "0.8",
    }


@contextmanager
def roles(
    host: Host, environment: dict[str, str], commands: Sequence[str], *, shared: Path, hidden: Path
) -> Iterator[None]:
    """Roles of hlip as processes on a host, stopped at the end."""
    started = [
        host.start([HLIP, *command.split()], environment, shared=shared, hidden=[hidden]) for command in commands
    ]
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def status(index: str, front: Host) -> dict[str, Any]:
    """As `hlip status` gives it on the first host; empty until the scheduler has made the index."""
    with front.network():
        database = Database(index, lock=front.disk / "lock")
        try:
            return overview(database, findings=True) if database.is_current() else {}
        finally:
            database.close()


def listens(front: Host) -> bool:
    """Whether the listener takes connections at the host's address."""
    with front.network(), socket.socket() as probe:
        return probe.connect_ex((front.address, PORT)) == 0


BROKERS = {"redis": redis_server, "rabbitmq": rabbitmq_server}


@pytest.mark.timeout(900)  # on a busy machine the servers alone take minutes
@pytest.mark.parametrize("kind", ["redis", pytest.param("rabbitmq", marks=pytest.mark.full)])
def test_workers_on_another_host_analyse_what_this_one_receives(tmp_path: Path, kind: str) -> None:
    shared = tmp_path / "shared"
    for name in ("shared", "broker", "sent"):
        (tmp_path / name).mkdir()
    sent = head_ct(tmp_path / "sent")[0].parent
    with two_hosts(tmp_path) as (front, back):
        secret = front.disk / "secret"
        secret.write_text("of the first host alone")
        with (
            front.network(),
            postgresql_server() as index,
            BROKERS[kind](tmp_path / "broker") as broker,
        ):
            index_port, broker_port = (urlsplit(url).port or 0 for url in (index, broker))
            index_there, broker_there = (url.replace("127.0.0.1", front.address) for url in (index, broker))
            ours = settings(front, tiny_bundle(), index=index, broker=broker)
            theirs = settings(back, tiny_bundle(), index=index_there, broker=broker_there)
            with (
                reachable(front, index_port),
                reachable(front, broker_port),
                roles(front, ours, ["listen", "schedule"], shared=shared, hidden=back.disk),
                roles(back, theirs, ["work --queue prepare", "work --queue analyse"], shared=shared, hidden=front.disk),
            ):
                assert sees(front, secret, shared, back.disk) and not sees(back, secret, shared, front.disk)
                wait_until(lambda: listens(front), "the listener", 240)
                dcmsend(PORT, sent, host=front.address)
                wait_until(lambda: status(index, front).get("studies_by_state") == {"reported": 1}, "the report", 400)
                (study,) = status(index, front)["studies"]
    results = study["revisions"][-1]["results"]
    assert results and all((shared / result["path"]).is_file() for result in results)
    assert not any((back.disk / name).exists() for name in ("index.sqlite", "incoming"))


def sees(host: Host, path: Path, shared: Path, hidden: Path) -> bool:
    """Whether a process on the host can read a file."""
    return host.start(["test", "-e", path], dict(os.environ), shared=shared, hidden=[hidden]).wait() == 0
