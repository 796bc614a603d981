"""Hosts of a network of our own: network namespaces with one cable between them, each with a disk of its own (Linux).

Only root may make them; a test is skipped where that is not so. Their addresses are of those that stand for examples
(RFC 5737), and nothing leads from them to anywhere else.
"""

import ctypes
import os
import shutil
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass(frozen=True)
class Host:
    """A network namespace. `disk` is a folder that only processes started by `start` on this host see."""

    name: str
    address: str
    disk: Path

    @contextmanager
    def network(self) -> Iterator[None]:
        """This thread, and what it starts, is on the host's network until the end of the block."""
        with Path("/proc/thread-self/ns/net").open() as before, Path(f"/run/netns/{self.name}").open() as ours:
            _set_namespace(ours.fileno())
            try:
                yield
            finally:
                _set_namespace(before.fileno())

    def start(
        self, command: Sequence[str | Path], environment: dict[str, str], *, shared: Path, hidden: Sequence[Path]
    ) -> subprocess.Popen[bytes]:
        """A process on this host: its network, the `shared` folder as ``disk/shared``, nothing in the `hidden` ones."""
        place = self.disk / "shared"
        place.mkdir(parents=True, exist_ok=True)
        mounts = [f"mount --bind '{shared}' '{place}'"]
        mounts += [f"mount -t tmpfs -o size=1m none '{folder}'" for folder in hidden]
        script = " && ".join([*mounts, 'exec "$@"'])
        with (self.disk / "processes.log").open("ab") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, "unshare", "--mount", "sh", "-c", script, "sh", *map(str, command)],
                env=environment, stdout=log, stderr=log, cwd="/",
            )  # fmt: skip


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts and the cable between them, until the end of the block."""
    if os.getuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "mount"))):
        pytest.skip("network namespaces need root and iproute2")
    tag = uuid.uuid4().hex[:6]
    hosts = [Host(f"hlip-{tag}-{n}", f"192.0.2.{n}", folder / f"disk-{n}") for n in (1, 2)]
    try:
        for host in hosts:
            host.disk.mkdir(parents=True)
            _ip("netns", "add", host.name)
    except subprocess.CalledProcessError:
        pytest.skip("this machine lets us make no network namespaces")
    try:
        ends = [f"h{tag}{n}" for n in (1, 2)]
        near, far = (["name", end, "netns", host.name] for end, host in zip(ends, hosts, strict=True))
        _ip("link", "add", *near, "type", "veth", "peer", *far)
        for host, end in zip(hosts, ends, strict=True):
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", end)
            for device in ("lo", end):
                _ip("-n", host.name, "link", "set", device, "up")
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", host.name)


@contextmanager
def reachable(host: Host, port: int) -> Iterator[None]:
    """What listens on the host's own 127.0.0.1:`port` can be reached at its address, too."""
    with host.network():
        server = socket.create_server((host.address, port))
    thread = threading.Thread(target=_forward, args=(host, server, port), daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def _forward(host: Host, server: socket.socket, port: int) -> None:
    with host.network():
        while True:
            try:
                outside, _ = server.accept()
            except OSError:  # the end of the block
                return
            inside = socket.create_connection(("127.0.0.1", port))
            for source, sink in ((outside, inside), (inside, outside)):
                threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
