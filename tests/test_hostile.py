"""Hostile input of every kind, against a listener and a web server as a site runs them, and against the volume code.

Nothing crashes or hangs, nothing lies outside the data folder, memory stays bounded, what was acknowledged is there
and nothing else is. The long rounds are marked `full`; `make coverage-hostile` prints which lines they reach.
"""

import contextlib
import io
import resource
import signal
import struct
import threading
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

import hostile
import hostile_wire as wire
from associations import P_DATA
from hlip_core.errors import Refused
from hlip_core.preprocessing import BRAIN_MRI, HEAD_CT
from hlip_core.reasons import Reason
from hostile_elements import Element, good, replaced, written
from hostile_site import DEADLINE_SECONDS, NETWORK_SECONDS, Site
from plugin.arrival import MOST_READS, find_identity, read_arrival, read_elements
from plugin.elements import WINDOW
from plugin.preparation import Job, prepare_series
from plugin.sandbox import Sandbox
from plugin.settings import RoutingRule

SMALL = {"num_slices": 4, "min_slices": 1, "size": 64, "crop": 56}
EVERYTHING = (RoutingRule(),)
SPECS = (replace(HEAD_CT, **SMALL), replace(BRAIN_MRI, **SMALL))

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]


def rounds(quick: int, full: int) -> pytest.MarkDecorator:
    """How many inputs: few in every run, many in the long one."""
    return pytest.mark.parametrize("count", [quick, pytest.param(full, marks=pytest.mark.full)])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    made.start()
    yield made
    made.stop()


def report(kind: str, count: int, slowest: float, **more: object) -> None:
    print(
        f"\n{kind}: {count} inputs, the slowest {slowest:.2f} s", *(f"{name} {value}" for name, value in more.items())
    )


def each(count: int, play: Callable[[int], int]) -> tuple[int, float]:
    """Play the inputs one after the other: the sum of what they give, and the longest time that one took."""
    total, slowest = 0, 0.0
    for number in range(count):
        start = time.monotonic()
        total += play(number)
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < DEADLINE_SECONDS
    return total, slowest


# ---- the listener ------------------------------------------------------------------------------------------

SAID = {
    "requests": wire.request,
    "conversations": wire.conversation,
    "command sets": wire.dimse,
    "data sets": wire.stored,
}


@rounds(28, 400)
@pytest.mark.parametrize("kind", SAID)
def test_whatever_is_said_to_the_listener(site: Site, kind: str, count: int) -> None:
    acknowledged, slowest = each(count, lambda number: site.converse(SAID[kind](number)).acknowledged)
    site.take_in(acknowledged)
    report(kind, count, slowest, kept=acknowledged, grown=site.check())


@rounds(20, 250)
def test_whatever_is_said_where_another_service_was_agreed(site: Site, count: int) -> None:
    def say(number: int) -> int:
        return site.converse(wire.committed(number), patient=True).acknowledged

    acknowledged, slowest = each(count, say)
    kept = len(list(site.spool.incoming.glob("*.dcm")))
    assert kept >= acknowledged > 0  # a peer that hangs up may miss the last acknowledgement
    site.take_in(kept)
    report("storage commitment", count, slowest, kept=kept, grown=site.check())


@pytest.mark.full
def test_silent_peers_are_hung_up_on(site: Site) -> None:
    said = [b"", *(b"".join(wire.conversation(number))[: 40 * number] for number in range(1, 24))]
    start = time.monotonic()
    threads = [threading.Thread(target=site.converse, args=([each],), kwargs={"silent": True}) for each in said]
    for thread in threads:
        thread.start()
    site.check()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    report("silent peers", len(said), time.monotonic() - start, grown=site.check())


def test_a_context_without_a_transfer_syntax_is_aborted_by_the_book(site: Site) -> None:
    context = wire.item(0x20, bytes((1, 0, 0, 0)) + wire.item(0x30, b"1.2.840.10008.1.1"))
    content = wire.opening()[6:80] + wire.item(0x10, b"1.2.840.10008.3.1.1.1") + context
    content += wire.item(0x50, wire.item(0x51, bytes(4)) + wire.item(0x52, b"1.2"))
    answer = site.converse([struct.pack(">BxL", 1, len(content)) + content])
    assert answer.pdus == [(7, bytes((0, 0, 2, 6)))]
    site.check()


def test_a_giant_pdu_is_not_waited_for_where_another_service_was_agreed(site: Site) -> None:
    start = time.monotonic()
    said = [wire.opening(wire.COMMITMENT), struct.pack(">BxL", P_DATA, 1 << 30), bytes(1 << 20)]
    assert [kind for kind, _ in site.converse(said, patient=True, silent=True).pdus][:1] == [2]
    assert time.monotonic() - start < NETWORK_SECONDS
    site.check()


# ---- what was acknowledged ---------------------------------------------------------------------------------


@pytest.mark.parametrize("charset", [b"ISO\0IR 100", b"\xff\xfe", b"rot13", b"\\" * 9, b"zlib"])
def test_no_character_set_stops_the_index(tmp_path: Path, charset: bytes) -> None:
    elements = replaced(good("CT")[0][0], {0x00080005: charset})
    path = kept(tmp_path, written(elements), ExplicitVRLittleEndian)
    assert read_arrival(path).text("Modality") == "CT"


STRANGE = Element(0x00200011, b"XX", b"2 ")


def header(*more: Element) -> bytes:
    """Up to the identifying attributes, and a series number that only the full parser reads."""
    elements = [each for each in good("CT")[0][0] if each.tag < 0x00200011]
    return written([*elements, Element(0x00200010, b"SH", b"1 "), STRANGE, *more])


def kept(folder: Path, content: bytes, syntax: str) -> Path:
    path = folder / "kept.dcm"
    path.write_bytes(hostile.Sample(content, syntax, b"1.2", b"1.2.4.1").part10)
    return path


def test_nobody_inflates_a_bomb_to_read_its_header(tmp_path: Path) -> None:
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = deflater.compress(header()) + deflater.flush(zlib.Z_FULL_FLUSH) + hostile.zeros()
    assert find_identity(bomb, DeflatedExplicitVRLittleEndian, whole=True) is None
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        read_arrival(kept(tmp_path, bomb, DeflatedExplicitVRLittleEndian))
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_a_header_without_end_is_given_up(tmp_path: Path) -> None:
    many = [Element(0x00210000 + n % 0xFFFF, b"LO", b"") for n in range(MOST_READS + 10)]
    content = written([STRANGE, *many])
    with pytest.raises(ValueError, match="does not end"):
        read_elements(io.BytesIO(kept(tmp_path, content, ExplicitVRLittleEndian).read_bytes()))


@pytest.mark.parametrize("value", [b"x", b"\\"])
def test_a_giant_name_is_not_read(tmp_path: Path, value: bytes) -> None:
    giant = [each for each in good("CT")[0][0] if each.tag < 0x00100020]
    giant += [Element(0x00100020, b"UT", value * (8 << 20))]
    giant += [each for each in good("CT")[0][0] if 0x00100020 < each.tag < 0x00201000]
    path = kept(tmp_path, written(giant), ExplicitVRLittleEndian)
    tracemalloc.start()
    with pytest.raises(ValueError, match="does not end"):
        read_arrival(path)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize("left", [-20, 0, 1, 150, 300, 400])
def test_listener_and_index_look_at_the_same_part_of_it(tmp_path: Path, left: int) -> None:
    """The identifying attributes end so many bytes before the window does; others follow that a full parser takes."""
    usual = [each for each in good("CT")[0][0] if each.tag <= 0x0020000E]
    others = [Element(0x00080018, b"UI", b"9.9.9\0"), Element(0x0020000D, b"UI", b"6.6.6\0")]
    last = Element(0x00200010, b"SH", b"1 ")
    length = WINDOW - left - len(written([*usual, last])) - 12
    filler = Element(0x00191001, b"UT", b" " * length)
    content = written([*usual[:-2], filler, *usual[-2:], last, *others])
    identity = find_identity(content[:WINDOW], ExplicitVRLittleEndian, whole=False)
    assert (identity is None) == (left < 0)
    if identity is not None:
        arrival = read_arrival(kept(tmp_path, content, ExplicitVRLittleEndian))
        assert arrival.study_instance_uid == identity.study_instance_uid == "1.2.1"
        assert arrival.sop_instance_uid == identity.sop_instance_uid


def test_an_instance_stays_what_it_was_acknowledged_as(tmp_path: Path) -> None:
    content = header(Element(0x0020000D, b"UI", b"../../escaped"), Element(0x00180001, b"SQ", b"", 9))
    identity = find_identity(content, ExplicitVRLittleEndian, whole=True)
    arrival = read_arrival(kept(tmp_path, content, ExplicitVRLittleEndian))
    assert identity is not None and arrival.study_instance_uid == identity.study_instance_uid == "1.2.1"


# ---- STOW-RS -----------------------------------------------------------------------------------------------


@rounds(24, 400)
@pytest.mark.parametrize("kind", ["posted", "post"])
def test_whatever_is_posted(site: Site, kind: str, count: int) -> None:
    made = {"posted": wire.posted, "post": wire.post}[kind]
    kept, slowest = each(count, lambda number: site.post(made(number)))
    site.take_in(kept)
    report(f"multiparts ({kind})", count, slowest, kept=kept, grown=site.check())


@rounds(20, 200)
def test_whatever_is_said_to_the_web_server(site: Site, count: int) -> None:
    def say(number: int) -> int:
        answer = site.converse(wire.http(number), port=site.web_port).content
        assert not answer.startswith(b"HTTP/1.1 5"), answer[:200]
        return 0

    _, slowest = each(count, say)
    site.take_in(len(list(site.spool.incoming.glob("*.dcm"))))
    report("HTTP", count, slowest, grown=site.check())


def test_a_request_of_endless_parts_is_cut_off(site: Site) -> None:
    part = b"\r\n--" + wire.BOUNDARY.encode() + b"\r\n\r\n"
    assert site.post(wire.Post(part * 100_000 + wire.LAST)) == 0
    site.take_in(0)
    site.check()


@pytest.mark.full
def test_files_that_no_one_should_send(site: Site, shared: Path) -> None:
    files = [path.read_bytes() for path in sorted((shared / "data" / "nasty").rglob("*")) if path.is_file()]

    def send(number: int) -> int:
        content = files[number]
        begin = 144 + int.from_bytes(content[140:144], "little")
        sample = hostile.Sample(content[begin:], hostile.SYNTAXES[number % 3], b"1.2.840.10008.5.1.4.1.1.2", b"1.2.3")
        said = wire.opening() + wire.message(2 * (number % 3) + 1, wire.store_rq(*_named(content)), sample.content)
        return site.converse([said, wire.RELEASE]).acknowledged + site.post(wire.Post(wire.part(content) + wire.LAST))

    kept, slowest = each(len(files), send)
    site.take_in(kept)
    report("nasty files, by both ways", 2 * len(files), slowest, kept=kept, grown=site.check())


def _named(content: bytes) -> tuple[str, str]:
    """SOP class and instance as the file's meta information has them."""
    names = []
    for tag in (b"\x02\x00\x02\x00UI", b"\x02\x00\x03\x00UI"):
        at = content.find(tag) + 6
        length = int.from_bytes(content[at : at + 2], "little") if at > 5 else 0
        names.append(content[at + 2 : at + 2 + min(length, 64)].decode("ascii", "replace").rstrip("\0 ") or "1.2")
    return names[0], names[1]


# ---- the volume code ---------------------------------------------------------------------------------------


class Hang(BaseException):
    """Nothing that reads hostile files may catch it."""


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def files_of(folder: Path, number: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for k, content in enumerate(hostile.series_files(number)):
        paths.append(folder / f"{k}.dcm")
        paths[-1].write_bytes(content)
    return paths


@rounds(54, 600)
def test_whatever_a_series_holds_it_is_a_scan_or_a_refusal(tmp_path: Path, count: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    places = {"prepared_path": tmp_path / "scan.b2nd", "header_path": tmp_path / "header.dcm"}
    fates: Counter[str] = Counter()

    def play(number: int) -> int:
        paths, spec = files_of(tmp_path / "in", number), SPECS[number % 9 == 8]
        with deadline(DEADLINE_SECONDS):
            try:
                scan = prepare_series(Job(paths=paths, spec=spec, rules=EVERYTHING, **places))
                assert scan.voxels.shape == (4, 64, 64) and all(0 < each < 1e6 for each in scan.spacing)
                fates["prepared"] += 1
            except Refused as refused:
                fates[refused.reason] += 1
        return 0

    _, slowest = each(count, play)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    report("series", count, slowest, grown=f"{grown // 1024} MB", fates=dict(fates))
    assert grown * 1024 < 1e9  # a series of bombs, inflated; the sandbox has a limit for what one holds
    assert len(fates) >= 5


@rounds(27, 200)
def test_whatever_a_series_holds_the_next_one_is_prepared(tmp_path: Path, count: int) -> None:
    sandbox = Sandbox(memory_gigabytes=1, timeout_seconds=DEADLINE_SECONDS)
    places = {"prepared_path": tmp_path / "scan.b2nd", "header_path": tmp_path / "header.dcm"}
    fates: Counter[str] = Counter()

    def prepared(paths: Sequence[Path]) -> str:
        try:
            sandbox.prepare(Job(paths=paths, spec=SPECS[0], rules=EVERYTHING, **places))
        except Refused as refused:
            return str(refused.reason)
        return "prepared"

    def play(number: int) -> int:
        fates[prepared(files_of(tmp_path / "in", number + 1000))] += 1
        return 0

    _, slowest = each(count, play)
    files = [tmp_path / f"{k}.dcm" for k in range(6)]
    images, syntax = good("CT")
    for path, elements in zip(files, images, strict=True):
        path.write_bytes(hostile.Sample(written(elements), syntax, b"1.2", b"1.2").part10)
    assert prepared(files) == "prepared"
    sandbox.close()
    assert {path.name for path in tmp_path.iterdir()} <= {
        "in",
        "scan.b2nd",
        "header.dcm",
        *(path.name for path in files),
    }
    report("series in the sandbox", count, slowest, fates=dict(fates))
    assert Reason.CRASHED not in fates
