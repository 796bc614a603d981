"""The task's border: whose fault a failure is, and what becomes of the item; nothing that names a patient is told."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.worker import state as worker_state
from sqlalchemy import select
from structlog.testing import capture_logs

from hlip_core.prepared import PreparedScan
from plugin import orphans
from plugin.index import leases
from plugin.index.database import IndexUnavailable
from plugin.index.tables import Series, Study
from plugin.preparation import Job
from plugin.spool import beside
from plugin.tasks import celery_app
from plugin.work import WORK, DeviceLost, work_once
from road import head_ct
from road_by_hand import Site

CANARY = "Quillfeather"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def failing(error: BaseException) -> Callable[..., Any]:
    def fails(*_: object, **__: object) -> None:
        raise error

    return fails


def attempts(site: Site) -> int:
    with site.database.read() as session:
        return session.scalars(select(Series.attempts)).one()


def test_an_index_that_goes_away_in_the_middle_ends_the_try_without_a_word_of_the_patient(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.receive(*head_ct(tmp_path, PatientName=f"{CANARY}^Zebulona"))
    monkeypatch.setitem(WORK, "prepare", failing(IndexUnavailable(f"OperationalError {CANARY}")))
    monkeypatch.setattr(leases, "put_back", failing(IndexUnavailable("OperationalError")))
    with capture_logs() as told:
        assert work_once(site.plugin, "prepare")
    assert [line["event"] for line in told] == ["failed", "not put back"] and CANARY not in str(told)


def test_a_worker_that_lost_its_claim_leaves_what_the_next_one_prepared(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = head_ct(tmp_path, slices=12)
    site.receive(*images[:8])
    site.scheduler.tick()
    prepare, seen = site.plugin.sandbox.prepare, []

    def overtaken(job: Job) -> tuple[str, ...]:
        monkeypatch.setattr(site.plugin.sandbox, "prepare", prepare)
        site.receive(*images[8:])
        site.scheduler.tick()
        assert work_once(site.plugin, "prepare")
        seen.append(lying(site))
        return prepare(job)

    monkeypatch.setattr(site.plugin.sandbox, "prepare", overtaken)
    assert work_once(site.plugin, "prepare")
    (scan,) = site.spool.prepared.glob("*/*.b2nd")
    assert len(PreparedScan.load(scan).source.instances) == 12
    assert lying(site)[scan.name] == seen[0][scan.name] and lying(site).keys() == seen[0].keys()


def lying(site: Site) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in site.spool.prepared.glob("*/*")}


def test_what_a_killed_worker_has_prepared_beside_its_place_is_swept(site: Site, tmp_path: Path) -> None:
    site.report(*head_ct(tmp_path))
    before = lying(site)
    for path in list(site.spool.prepared.glob("*/*")):
        beside(path, "0123").write_bytes(b"left over")
    for orphan in orphans.find(site.spool, site.database, min_age_seconds=0):
        assert orphan.what == "half-written file"
        orphans.settle(site.spool, site.database, orphan)
    assert lying(site) == before


class AcceleratorError(RuntimeError):
    """As torch's."""


@pytest.mark.parametrize(
    ("error", "is_counted"),
    [
        (OSError(errno.EIO, "Input/output error"), False),
        (OSError(errno.ESTALE, "Stale file handle"), False),
        (OSError(errno.EMFILE, "Too many open files"), False),
        (IndexUnavailable("OperationalError"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), True),
        (OSError(errno.EINVAL, "Invalid argument"), True),
        (OSError("cannot identify image file"), True),
        (RuntimeError("CUDA out of memory"), True),
    ],
)
def test_a_try_counts_where_the_item_is_to_blame(
    error: Exception, is_counted: bool, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.receive(*head_ct(tmp_path))
    site.scheduler.tick()
    monkeypatch.setitem(WORK, "prepare", failing(error))
    assert work_once(site.plugin, "prepare")
    assert attempts(site) == is_counted


@pytest.mark.parametrize("error", [AcceleratorError("unspecified launch failure"), RuntimeError("CUDA error: 719")])
def test_a_device_that_fails_ends_the_worker_and_counts(
    error: Exception, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.receive(*head_ct(tmp_path))
    site.scheduler.tick()
    monkeypatch.setitem(WORK, "prepare", failing(error))
    with pytest.raises(DeviceLost):
        work_once(site.plugin, "prepare")
    assert attempts(site) == 1
    monkeypatch.setattr("plugin.work.MACHINE_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("celery.worker.state.should_stop", None)
    with site.database.write() as session:
        session.scalars(select(Series)).one().next_try_at = 0.0
    celery_app(site.plugin).tasks["hlip.prepare"]()
    assert worker_state.should_stop == 1


@pytest.mark.parametrize("suffix", [".b2nd", ".header.dcm"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"damaged")])
def test_what_is_lost_of_a_prepared_series_is_made_again(
    damage: Callable[[Path], object], suffix: str, site: Site, tmp_path: Path
) -> None:
    site.receive(*head_ct(tmp_path))
    site.scheduler.tick()
    assert work_once(site.plugin, "prepare")
    site.scheduler.tick()
    (path,) = site.spool.prepared.glob(f"*/*{suffix}")
    damage(path)
    assert work_once(site.plugin, "analyse")
    with site.database.read() as session:
        assert session.scalars(select(Study.state)).one() == "receiving"
    site.work()
    assert site.study()["state"] == "reported"
