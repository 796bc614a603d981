"""The making of a cohort: resumable, in parallel, one record a study.

    .work/salt            the salt of this cohort, unless a salt file was named; deleted when the cohort is done
    .work/options.json    what must not change between two starts
    .work/records/        a record for each study that is done
    scans/                prepared scans

A study is taken up again while its record or one of its scans is missing or has another size than was written,
when its files or its report changed, and when the archive did not give it the last time.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_sentinel
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from hlip_core.errors import InputError
from hlip_core.headers import MALFORMED
from hlip_core.reasons import Reason

from .make import Job, Recipe, make_record
from .study import Record, RefusedSeries

__all__ = ["WORK", "close", "enter", "gather", "workers_pool"]

WORK, SALT, RECORDS = ".work", "salt", "records"
AHEAD = 4  # jobs a worker that lie in the pool


# ---- the folder ----------------------------------------------------------------------------------------------


@contextmanager
def enter(out: Path, options: dict[str, Any]) -> Iterator[Path]:
    """The cohort's folder for this process alone; yields where the salt is, if no other place is named.

    Raises:
        InputError: another process is in it, it was begun with other options, or it is finished and its salt gone.
    """
    work = out / WORK
    if (out / "cohort.json").exists() and not work.exists():
        raise InputError(f"{out} holds a finished cohort whose salt was destroyed: name another folder")
    (work / RECORDS).mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another `hlip-train cohort` is writing to {out}") from error
        _check_options(work / "options.json", options)
        yield work / SALT


def _check_options(path: Path, options: dict[str, Any]) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    if changed := sorted(name for name in options if name in before and before[name] != options[name]):
        raise InputError(
            f"{path.parent.parent} was begun with another value of {', '.join(changed)}: "
            "start with the same options, or name another folder"
        )
    part = path.with_suffix(".part")
    part.write_text(json.dumps(options))
    part.replace(path)


def close(out: Path) -> None:
    """Destroys the salt and what could be continued with it."""
    shutil.rmtree(out / WORK)


# ---- workers -------------------------------------------------------------------------------------------------


@contextmanager
def workers_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes of one thread each, which end when this process does, however that happens."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets studies under way finish
    warnings.simplefilter("ignore")  # pydicom's quote values
    threadpool_limits(1)
    import blosc2

    blosc2.set_nthreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    wait_for_sentinel([sentinel])
    os._exit(1)


# ---- records -------------------------------------------------------------------------------------------------


def gather(jobs: Sequence[Job], recipe: Recipe, workers: int, done: Callable[[Record], None]) -> list[Record]:
    """The records of all studies; those that are not there yet are made, in parallel. `done` hears of each."""
    records: list[Record] = []
    waiting: list[Job] = []
    for job in jobs:
        record = _finished(job, recipe)
        if record is None:
            waiting.append(job)
        else:
            records.append(record)
            done(record)
    for record in _make(waiting, recipe, workers):
        records.append(record)
        done(record)
    return records


def _path(job: Job, recipe: Recipe) -> Path:
    return recipe.out / WORK / RECORDS / f"{recipe.pseudonyms.salted_uid(job.study.study_instance_uid)}.json"


def _finished(job: Job, recipe: Recipe) -> Record | None:
    """The record of a study that needs nothing more."""
    record = Record.load(_path(job, recipe))
    if record is None or record.is_to_retry or not record.is_whole(recipe.out):
        return None
    return record if record.inputs == recipe.pseudonyms.token("inputs", job.inputs) else None


def _make(jobs: Sequence[Job], recipe: Recipe, workers: int) -> Iterator[Record]:
    suspects: list[Job] = []
    rest = list(reversed(jobs))
    while rest:
        yield from _pooled(rest, suspects, recipe, workers)
    for job in suspects:  # a worker died with one of these: which one it was shows when each is alone
        lost: list[Job] = []
        yield from _pooled([job], lost, recipe, 1)
        if lost:
            record = _crashed(job, recipe)
            record.save(_path(job, recipe))
            yield record


def _pooled(rest: list[Job], suspects: list[Job], recipe: Recipe, workers: int) -> Iterator[Record]:
    """Takes jobs from the end of `rest` until it is empty, or until a worker dies: what it had goes to `suspects`."""
    tasks: dict[Future[Record], Job] = {}
    with workers_pool(min(workers, len(rest))) as pool:
        try:
            while rest or tasks:
                while rest and len(tasks) < workers * AHEAD:
                    tasks[pool.submit(_make_and_save, rest[-1], recipe)] = rest[-1]
                    rest.pop()
                for task in wait(tasks, return_when=FIRST_COMPLETED).done:
                    record = task.result()
                    del tasks[task]
                    yield record
        except BrokenProcessPool:
            suspects.extend(tasks.values())


def _make_and_save(job: Job, recipe: Recipe) -> Record:
    try:
        record = make_record(job, recipe)
    except OSError:  # a full disk is no fault of the study
        raise
    except MALFORMED:  # whatever its headers hold, it is one study; what was raised may quote them
        record = _crashed(job, recipe)
    record.save(_path(job, recipe))
    return record


def _crashed(job: Job, recipe: Recipe) -> Record:
    pseudonyms, study = recipe.pseudonyms, job.study
    uid = pseudonyms.uid(study.study_instance_uid)
    series = [pseudonyms.uid(one.series_instance_uid) for one in study.series] or [""]
    return Record(
        study=uid,
        patient=pseudonyms.patient(study.patient_id, study.study_instance_uid),
        inputs=pseudonyms.token("inputs", job.inputs),
        refused=tuple(RefusedSeries(study=uid, series=one, reason=Reason.CRASHED) for one in series),
    )
