"""Poisonous series: each ends with a reason, the worker and all other studies go on."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hlip_core.errors import Refused
from hlip_core.preprocessing import PREPROCESSINGS
from hlip_core.reasons import Reason
from hlip_core.volume import PreparedScan, open_series, prepare
from peers import dcmsend, wait_until
from plugin.bootstrap import Plugin
from plugin.folder import analyse_folder
from plugin.preparation import Job
from plugin.sandbox import Died, Sandbox
from plugin.settings import DEFAULT_ROUTING
from road import head_ct, road, settings, tiny_bundle

POISON = (sys.executable, str(Path(__file__).with_name("poison.py")))


def job(folder: Path, description: str = "", **elements: object) -> Job:
    return Job(
        paths=head_ct(folder, name=description or "good", SeriesDescription=description, **elements),
        spec=PREPROCESSINGS["head-ct/1"],
        rules=DEFAULT_ROUTING,
        prepared_path=folder / "scan.b2nd",
        header_path=folder / "header.dcm",
    )


def child_of(sandbox: Sandbox) -> int:
    assert sandbox._child is not None
    return sandbox._child.process.pid


def megabytes(process: int) -> float:
    """Of memory that it has (Linux)."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """One for all: whatever it has swallowed, the next series must not suffer."""
    poisoned = Sandbox(memory_gigabytes=1, timeout_seconds=20, command=POISON)
    yield poisoned
    poisoned.close()


def test_a_good_series_is_prepared_as_in_the_worker_itself(sandbox: Sandbox, tmp_path: Path) -> None:
    good = job(tmp_path)
    notes = sandbox.prepare(good)
    here = prepare(open_series(good.paths), good.spec)
    kept = PreparedScan.load(good.prepared_path)
    assert (kept.voxels == here.voxels).all() and kept.notes == here.notes == notes
    assert good.header_path.is_file()
    assert good.prepared_path.stat().st_mode & 0o077 == 0


def test_series_after_series_has_the_same_child(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.prepare(job(tmp_path))
    first = child_of(sandbox)
    with pytest.raises(Refused) as refusal:
        sandbox.prepare(job(tmp_path / "small", slices=3))
    assert refusal.value.reason is Reason.TOO_FEW_SLICES
    assert child_of(sandbox) == first


@pytest.mark.parametrize(
    ("poison", "how"),
    [("abort", "died of SIGABRT"), ("segfault", "died of SIGSEGV"), ("exit", "ended with exit code 3"),
     ("trip", "RuntimeError at __main__:")],
)  # fmt: skip
def test_a_crash_is_told_and_the_next_series_is_prepared(
    sandbox: Sandbox, tmp_path: Path, poison: str, how: str
) -> None:
    with pytest.raises(Died, match=how) as death:
        sandbox.prepare(job(tmp_path, poison))
    assert "Canary" not in str(death.value)
    sandbox.prepare(job(tmp_path))


def test_a_series_that_eats_memory_is_refused_as_too_large(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="more than 1 GB") as refusal:
        sandbox.prepare(job(tmp_path, "eat"))
    assert refusal.value.reason is Reason.TOO_LARGE
    sandbox.prepare(job(tmp_path))


def test_a_series_is_not_too_large_for_what_the_one_before_it_left_behind(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.prepare(job(tmp_path))
    used = child_of(sandbox)
    sandbox.prepare(job(tmp_path / "next", "grow"))
    assert child_of(sandbox) != used


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_a_series_took_is_given_back(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.prepare(job(tmp_path / "before"))
    child, before = child_of(sandbox), megabytes(child_of(sandbox))
    sandbox.prepare(job(tmp_path / "after", "let-go"))
    assert child_of(sandbox) == child
    assert megabytes(child) < before + 20, "of 39 MB freed"


def test_a_series_that_never_ends_is_ended(tmp_path: Path) -> None:
    sandbox = Sandbox(timeout_seconds=2, command=POISON)
    sandbox.prepare(job(tmp_path))
    pid, started = child_of(sandbox), time.monotonic()
    with pytest.raises(Died, match="longer than 2 s"):
        sandbox.prepare(job(tmp_path, "hang"))
    assert time.monotonic() - started < 10
    assert not Path(f"/proc/{pid}").exists()
    sandbox.close()


def test_a_full_disk_is_not_the_series_fault(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as failure:
        sandbox.prepare(job(tmp_path, "disk"))
    assert failure.value.errno == 28


def test_a_child_that_died_idle_is_replaced(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.prepare(job(tmp_path))
    os.kill(child_of(sandbox), signal.SIGKILL)
    wait_until(lambda: sandbox._child and sandbox._child.process.poll() is not None, "the child's end")
    sandbox.prepare(job(tmp_path))


def test_the_child_knows_no_secret_and_leaves_no_core(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HLIP_INDEX__URL", "postgresql+psycopg://hlip:canary@db/hlip")
    sandbox.close()
    sandbox.prepare(job(tmp_path))
    process = Path(f"/proc/{child_of(sandbox)}")
    assert b"canary" not in (process / "environ").read_bytes()
    assert next(line.split()[4] for line in (process / "limits").read_text().splitlines() if "core" in line) == "0"
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # meant for the worker's group: it ends the child itself
        os.kill(child_of(sandbox), signal_number)
    sandbox.prepare(job(tmp_path))
    assert child_of(sandbox) == int(process.name)


def test_a_child_dies_with_its_worker(tmp_path: Path) -> None:
    """However the worker dies; here the thread that started it, which the kernel takes for it."""
    sandbox = Sandbox(command=POISON)
    good = job(tmp_path)
    thread = threading.Thread(target=lambda: sandbox.prepare(good))
    thread.start()
    thread.join()
    wait_until(lambda: sandbox._child and sandbox._child.process.poll() == -signal.SIGKILL, "the child's end")
    sandbox.close()


def test_every_nasty_file_ends_in_a_scan_or_a_reason(tmp_path: Path, shared: Path) -> None:
    files = [path for path in sorted((shared / "data" / "nasty").rglob("*")) if path.is_file()]
    sandbox = Sandbox(memory_gigabytes=1, timeout_seconds=60)
    good = job(tmp_path)
    for path in files:
        nasty = Job(**{**vars(good), "paths": [path]})
        with pytest.raises(Refused):
            sandbox.prepare(nasty)
    assert sandbox.prepare(good) is not None
    sandbox.close()


def test_poisonous_series_end_with_a_reason_and_others_are_reported(tmp_path: Path) -> None:
    poisons = ("abort", "eat", "hang")
    for name in poisons:
        head_ct(tmp_path / "in", name=name, SeriesDescription=name)
    head_ct(tmp_path / "in", name="good")
    with road(tmp_path, workers={"max_attempts": 2}, model={"bundle": str(tiny_bundle())}) as plugin:
        plugin.plugin.sandbox = poisoned = Sandbox(memory_gigabytes=0.5, timeout_seconds=5, command=POISON)
        dcmsend(plugin.port, tmp_path / "in")
        status = plugin.settled(instances=48, seconds=120)
        ends = {}
        for study in status["studies"]:
            (series,) = study["series"]
            ends[series["series_description"]] = (study["state"], series["reason"], series["detail"])
    poisoned.close()
    assert ends == {
        "abort": ("reported", "crashed", "died of SIGABRT"),
        "eat": ("reported", "too_large", "needs more than 0.5 GB of memory"),
        "hang": ("reported", "crashed", "took longer than 5 s"),
        "Head": ("reported", None, ""),
    }


def test_analyze_goes_on_after_a_poisonous_series(tmp_path: Path) -> None:
    head_ct(tmp_path / "in", name="study", number=2, SeriesDescription="abort")
    head_ct(tmp_path / "in", name="study", number=3)
    plugin = Plugin(settings(tmp_path, model={"bundle": str(tiny_bundle())}))
    plugin.sandbox = Sandbox(command=POISON)
    (outcome,) = analyse_folder(plugin, [tmp_path / "in"], tmp_path / "out", device="cpu", progress=lambda *_: None)
    assert [(s.state, s.reason) for s in outcome.study.series] == [("refused", "crashed"), ("prepared", None)]
    assert outcome.analysis is not None


class DiesAtOnce(Sandbox):
    """Of the study "dies" nothing is kept, not even a header."""

    def prepare(self, job: Job) -> tuple[str, ...]:
        if "dies-2" in str(job.paths[0]):
            raise Died("died of SIGKILL")
        return super().prepare(job)


def test_analyze_goes_on_after_a_study_of_which_no_header_could_be_kept(tmp_path: Path) -> None:
    for name in ("dies", "good"):
        head_ct(tmp_path / "in", name=name)
    plugin = Plugin(settings(tmp_path, model={"bundle": str(tiny_bundle())}))
    plugin.sandbox = DiesAtOnce(command=POISON)
    dead, good = analyse_folder(plugin, [tmp_path / "in"], tmp_path / "out", device="cpu", progress=lambda *_: None)
    assert (dead.analysis, dead.reason) == (None, "header")
    assert [(series.state, series.reason) for series in dead.study.series] == [("refused", "crashed")]
    assert good.analysis is not None and (good.folder / "findings.json").is_file()
