"""The limits of the fast loop: of time, size, number and room on the disk; and its order of system calls."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from structlog.testing import capture_logs

from associations import ABORT, ASSOCIATE_RJ, CT_EXPLICIT, P_DATA, USER, RawPeer, aborted, associate_rq, pdu, pdv
from peers import free_port, is_open, needs, wait_until
from plugin.dimse import Peer, echo
from plugin.listener import Listener, listening
from plugin.settings import ListenerSettings
from plugin.spool import Spool
from plugin.storage import Sender, Storage
from plugin.wire import ARENA
from store_messages import DATA_SET, MESSAGE, SOP_INSTANCE_UID, STORE, data_set_of, encoded, fragmented, kept, stored

# ---- limits ----------------------------------------------------------------------------------------------


def test_silent_and_slow_peers_are_cut_off(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with listening(ListenerSettings(port=0, network_timeout_seconds=0.3), spool) as running:
        silent = {
            "before": b"",
            "within the header": MESSAGE[:3],
            "within a PDU": MESSAGE[:-5],
            "within": MESSAGE[:120],
        }
        peers = {name: RawPeer(running.port) for name in ("mute", *silent)}
        for name, stream in silent.items():
            peers[name].associate()
            peers[name].send(stream)
        for raw in peers.values():
            assert aborted(raw)[0] == USER
        with RawPeer(running.port) as slow:  # each PDU comes in time, the message never
            slow.associate()
            slow.send(pdu(P_DATA, pdv(1, STORE, command=True, last=True)))
            with pytest.raises(OSError):
                for _ in range(100):
                    slow.send(pdu(P_DATA, pdv(1, b"x")))
                    time.sleep(0.05)
        wait_until(lambda: not list(spool.associations.iterdir()), "all marks to go")
        assert kept(spool) == []


def test_an_object_over_the_limit_is_refused_and_the_next_is_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with (
        listening(ListenerSettings(port=0, max_object_gigabytes=0.002), spool) as running,
        RawPeer(running.port) as raw,
    ):
        raw.associate()
        content = encoded(pixels=4_000_000)
        raw.send(pdu(P_DATA, pdv(1, STORE, command=True, last=True)))
        raw.send(*(pdu(P_DATA, piece) for piece in fragmented(1, content, command=False, size=100_000)))
        assert raw.status() == 0xA700
        assert kept(spool) == []
        assert stored(raw, spool, MESSAGE) == DATA_SET


def test_an_object_over_the_limit_is_refused_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    storage = Storage(spool, max_object_bytes=100)
    uids = {"sop_class_uid": CTImageStorage, "sop_instance_uid": SOP_INSTANCE_UID}
    receiving = storage.receive(Sender(spool, "a"), **uids, transfer_syntax_uid=ExplicitVRLittleEndian)
    with capture_logs() as said:
        for _ in range(1000):
            receiving.add(b"x")
        assert receiving.finish() == 0xA700
    assert len(said) == 1


def test_a_second_listener_on_the_port_leaves_the_first_one_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with listening(ListenerSettings(port=0), spool) as running, RawPeer(running.port) as raw:
        raw.associate()
        stored(raw, spool, MESSAGE)
        with pytest.raises(OSError, match="in use"):
            Listener(ListenerSettings(port=running.port), spool).start()
        assert spool.open_studies(cap_seconds=60).series == {"1.2.2"}


def test_a_disk_that_is_nearly_full_refuses_until_there_is_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    usual = spool.room.min_free_bytes
    with listening(ListenerSettings(port=0), spool) as running, RawPeer(running.port) as raw:
        raw.associate()
        for free, status in ((1 << 60, 0xA700), (usual, 0x0000), (1 << 60, 0xA700), (usual, 0x0000)):
            spool.room.min_free_bytes = free
            raw.send(MESSAGE)
            assert raw.status() == status
            assert echo(Peer("127.0.0.1", running.port, "HLIP"))
        assert len(kept(spool)) == 2


def test_a_disk_that_fills_in_the_middle_refuses_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    spool = Spool(tmp_path)
    content = encoded(pixels=2 * ARENA)
    pieces = fragmented(1, content, command=False, size=100_000)
    message = pdu(P_DATA, pdv(1, STORE, command=True, last=True)) + b"".join(pdu(P_DATA, piece) for piece in pieces)
    with listening(ListenerSettings(port=0), spool) as running, RawPeer(running.port) as raw:
        raw.associate()
        for call in ("writev", "fsync", "rename"):
            with monkeypatch.context() as patch:
                patch.setattr(os, call, full)
                raw.send(message)
                assert raw.status() == 0xA700
        assert kept(spool) == []
        raw.send(message)
        assert raw.status() == 0x0000
        assert data_set_of(kept(spool)[0]) == content


def test_a_peer_is_told_that_there_are_too_many_and_idle_connections_have_a_limit(tmp_path: Path) -> None:
    with listening(ListenerSettings(port=0, max_associations=1), Spool(tmp_path)) as running:
        with RawPeer(running.port) as first, RawPeer(running.port) as second:
            first.associate()
            second.send(associate_rq([CT_EXPLICIT]))
            kind, content = second.receive()
            assert (kind, tuple(content[1:])) == (ASSOCIATE_RJ, (2, 3, 2))
            first.release()
        many = [RawPeer(running.port) for _ in range(40)]
        assert sum(self_closed(raw) for raw in many) >= 20
        for raw in many:
            raw.close()
        wait_until(lambda: echo(Peer("127.0.0.1", running.port, "HLIP")), "a place")


def self_closed(raw: RawPeer) -> bool:
    raw.socket.settimeout(0.1)
    try:
        return raw.socket.recv(1) == b""
    except TimeoutError:
        return False


def test_stopping_aborts_what_is_open(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with listening(ListenerSettings(port=0), spool) as running:
        raw, waiting = RawPeer(running.port), RawPeer(running.port)
        raw.associate()
        raw.send(MESSAGE)
        assert raw.status() == 0x0000
        stopper = threading.Thread(target=running.stop)
        stopper.start()
        assert raw.receive()[0] == ABORT
        raw.close()
        waiting.close()
        stopper.join(20)
        assert not stopper.is_alive() and not list(spool.associations.iterdir())
    assert len(kept(spool)) == 1


def test_what_a_killed_listener_left_half_written_is_swept_away(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for name, age in (("old", 7200), ("new", 1)):
        half = spool.incoming / f".{name}.dcm.part"
        half.write_bytes(b"half")
        os.utime(half, (time.time() - age,) * 2)
    with listening(ListenerSettings(port=0), spool):
        assert [path.name for path in spool.incoming.iterdir()] == [".new.dcm.part"]


# ---- what the kernel saw ---------------------------------------------------------------------------------


def test_the_order_of_system_calls_is_write_fsync_rename_fsync_answer(tmp_path: Path) -> None:
    strace, port, trace = needs("strace", "strace"), free_port(), tmp_path / "trace"
    environment = os.environ | {"HLIP_SPOOL__FOLDER": str(tmp_path / "data"), "HLIP_LISTENER__PORT": str(port)}
    calls = "trace=openat,writev,fsync,rename,renameat,renameat2,sendto"
    process = subprocess.Popen(
        [strace, "-f", "-y", "-s", "0", "-e", calls, "-o", trace, sys.executable, "-m", "plugin", "listen"],
        env=environment,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: is_open(port) or process.poll() is not None, "the listener", 60)
        if process.poll() is not None and b"ptrace" in process.communicate()[1].lower():
            pytest.skip("strace may not trace here")
        with RawPeer(port, timeout=60) as raw:
            raw.associate()
            for _ in range(2):
                raw.send(MESSAGE)
                assert raw.status() == 0x0000
            raw.release()
    finally:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)
        process.communicate(timeout=60)
    seen = [_named(line) for line in trace.read_text().splitlines()]
    begin = seen.index("write the file")
    steps = [step for step in seen[begin:] if step]
    once = ["write the file", "fsync the file", "rename", "fsync the folder", "answer"]
    assert steps[:10] == once * 2


def _named(line: str) -> str | None:
    """What a line of strace says of the road of an instance."""
    patterns = {
        r"writev\(\d+<.*/incoming/\..*\.part>": "write the file",
        r"fsync\(\d+<.*/incoming/\..*\.part>": "fsync the file",
        r"rename(at2?)?\(.*\.part.*\.dcm": "rename",
        r"fsync\(\d+<.*/incoming>": "fsync the folder",
        r"sendto\(": "answer",
    }
    return next(
        (name for pattern, name in patterns.items() if re.search(pattern, line) and "resumed" not in line), None
    )
