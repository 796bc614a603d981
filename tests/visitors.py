"""The page on a free port, people who visit it, and studies for them to see."""

import atexit
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests

from plugin.bootstrap import Plugin
from plugin.index import people
from plugin.index.people import FailedSignIn, Role
from plugin.index.tables import Delivery, Event, Instance, Result, Revision, Series, Study
from plugin.passwords import hash_password
from plugin.settings import Settings
from plugin.web.app import create_app
from plugin.web.server import serving

PASSWORD = "correct horse battery"
HTML = {"Accept": "text/html"}
RETRY = "/operations/retry"
STUDY = "1.2.3"
CT = "1.2.840.10008.5.1.4.1.1.2"


@cache
def empty_index() -> Path:
    """An SQLite index of this version, made once for all tests of a run."""
    folder = tempfile.TemporaryDirectory(prefix="hlip-index-")
    atexit.register(folder.cleanup)
    plugin = Plugin(Settings(spool={"folder": Path(folder.name)}))
    plugin.database.upgrade()
    plugin.database.close()
    return Path(folder.name) / "index.sqlite"


@cache
def password_hash() -> str:
    """Of `PASSWORD`, once: it is made to take time."""
    return hash_password(PASSWORD)


def add_user(plugin: Plugin, name: str, role: Role) -> None:
    people.add_user(plugin.database, name, role=role, password_hash=password_hash())


class Visitor(requests.Session):
    """A browser without scripts: keeps cookies, follows no redirect by itself."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.headers.update(HTML)

    def request(self, method: str, url: str, **more: Any) -> requests.Response:  # type: ignore[override]
        more["allow_redirects"] = False
        more.setdefault("timeout", 30)
        return super().request(method, urljoin(self.base, url), **more)

    def sign_in(self, name: str, password: str = PASSWORD, *, to: str = "/") -> requests.Response:
        token = field(self.get("/sign-in").text, "form_token")
        form = {"form_token": token, "name": name, "password": password, "next": to}
        return self.post("/sign-in", data=form)

    @property
    def csrf(self) -> str:
        found = re.search(r'<meta name="csrf-token" content="([^"]+)"', self.get("/operations").text)
        assert found is not None
        return found[1]


def field(page: str, name: str) -> str:
    """The value of a hidden field."""
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found is not None, name
    return found[1]


class Page:
    """A running page."""

    def __init__(self, plugin: Plugin, port: int) -> None:
        self.plugin = plugin
        self.port = port
        self.base = f"http://127.0.0.1:{port}"

    def visitor(self) -> Visitor:
        return Visitor(self.base)

    def signed_in(self, name: str) -> Visitor:
        visitor = self.visitor()
        assert visitor.sign_in(name).status_code == 303
        return visitor


@contextmanager
def showing(folder: Path, **sections: Any) -> Iterator[Page]:
    """The page on an empty index, until the end of the block."""
    data = folder / "data"
    data.mkdir(parents=True)
    shutil.copyfile(empty_index(), data / "index.sqlite")
    spool = {"folder": data, "min_free_gigabytes": 0, "worker_min_free_gigabytes": 0}
    plugin = Plugin(Settings(spool=spool, web={"port": 0, **sections.pop("web", {})}, **sections))
    try:
        with serving(create_app(plugin), plugin.settings.web) as server:
            yield Page(plugin, server.port)
    finally:
        plugin.database.close()


def add_study(
    plugin: Plugin, uid: str, *, state: str = "reported", priority: int = 20, seconds_ago: float = 600,
    took: float = 40, **columns: Any,
) -> int:  # fmt: skip
    """A study with a series of two images, analysed `took` seconds after the last one where it is reported."""
    with plugin.database.write() as session:
        last = people._now(session) - seconds_ago
        study = Study(study_instance_uid=uid, state=state, priority=priority, first_image_at=last - 5,
                      last_image_at=last, detail=columns.pop("detail", ""), **columns)  # fmt: skip
        session.add(study)
        session.flush()
        is_refused = state == "refused"
        series = Series(study_id=study.id, series_instance_uid=f"{uid}.1", modality="CT", num_instances=2,
                        state="refused" if is_refused else "prepared",
                        reason=study.reason if is_refused else None, last_image_at=last)  # fmt: skip
        session.add(series)
        session.flush()
        for i in range(2):
            session.add(Instance(series_id=series.id, sop_class_uid=CT, sop_instance_uid=f"{uid}.1.{i}", digest="",
                                 patient_digest="", is_content=True, size=1, received_at=last))  # fmt: skip
        if state == "reported":
            session.add(Event(study_id=study.id, stage="analysed", at=last + took, seconds=took))
        return study.id


def add_delivery(plugin: Plugin, study_id: int, *, destination: str, state: str, **columns: Any) -> None:
    """A result of the study, and what became of it at a destination."""
    with plugin.database.write() as session:
        revision = Revision(study_id=study_id, number=1, inputs_digest="", content_digest="", bundle_digest="",
                            preprocessing="", created_at=people._now(session), findings=[])  # fmt: skip
        session.add(revision)
        session.flush()
        result = Result(revision_id=revision.id, sop_class_uid="1.2", sop_instance_uid=f"2.25.{study_id}",
                        series_instance_uid="2.25.1", description="AI summary", path="x")  # fmt: skip
        session.add(result)
        session.flush()
        session.add(Delivery(result_id=result.id, destination=destination, state=state, **columns))


@contextmanager
def peopled(folder: Path) -> Iterator[Page]:
    """A page with a viewer, an operator, and a study; what happens is in its audit trail."""
    with showing(folder, audit={"file": str(folder / "audit.log"), "patient_ids": True}) as shown:
        add_user(shown.plugin, "vera", "viewer")
        add_user(shown.plugin, "otto", "operator")
        add_study(shown.plugin, STUDY, patient_id="4711", patient_name="Canary^Jane")
        yield shown


def forget_guesses(page: Page) -> None:
    """No test pays for the wrong guesses of another."""
    with page.plugin.database.write() as session:
        session.query(FailedSignIn).delete()
