"""Fixtures that several test files share: small models and cohorts, the test data folder, real peers on free ports."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom
import pytest
import structlog
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from peers import postgresql_server, rabbitmq_server

if TYPE_CHECKING:  # nothing that brings torch along
    from hlip_core.bundle import Bundle
    from trainer.evaluation.evaluation import Evaluation
    from trainer.manifest import Cohort

os.environ["COLUMNS"] = "160"  # of the terminal that tables are drawn for, whatever the tests run in
STRICTNESS = pydicom.config.settings.reading_validation_mode
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def manners() -> Iterator[None]:
    """What `plugin.bootstrap.configure` sets for a whole process lasts no longer than a test."""
    yield
    structlog.reset_defaults()
    pydicom.config.settings.reading_validation_mode = STRICTNESS


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: more of them wait for each other longer than models of a test take."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> "Bundle":
    """The bundle of a model that is small enough for tests."""
    import tiny
    from hlip_core.bundle import load_bundle

    return load_bundle(tiny.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small cohort that can be learnt."""
    import cohorts

    return cohorts.write(tmp_path_factory.mktemp("cohort") / "c").folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of eight small phantoms."""
    import evaluations

    return evaluations.write_phantoms(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="session")
def phantom_cohort(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> "Cohort":
    """The eight phantoms as a cohort."""
    import evaluations

    return evaluations.write_phantom_cohort(tmp_path_factory.mktemp("cohort"), phantoms)


@pytest.fixture(scope="session")
def evaluation(bundle: "Bundle", phantom_cohort: "Cohort") -> "Evaluation":
    """The bundle on all eight phantoms."""
    import evaluations

    return evaluations.run(bundle, phantom_cohort)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real DICOM data beside the repository; the test is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("the shared test data folder is not beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own."""
    with postgresql_server() as url:
        yield url


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a RabbitMQ node of our own."""
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq")) as url:
        yield url


@pytest.fixture
def new_database(postgresql: str) -> Iterator[str]:
    """The URL of a PostgreSQL database that is empty, and dropped afterwards."""
    url = make_url(postgresql).set(database="hlip_road")
    engine = create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE IF EXISTS hlip_road WITH (FORCE)")
        connection.exec_driver_sql("CREATE DATABASE hlip_road")
    yield url.render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE hlip_road WITH (FORCE)")
    engine.dispose()


@pytest.fixture(params=["sqlite-embedded", "postgresql-rabbitmq"])
def stack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a site runs the road on. Nothing but two settings changes, which win over those of a test."""
    urls = {"HLIP_BROKER__URL": "embedded"}
    if request.param == "postgresql-rabbitmq":
        urls = {
            "HLIP_BROKER__URL": request.getfixturevalue("rabbitmq"),
            "HLIP_INDEX__URL": request.getfixturevalue("new_database"),
        }
    for name, url in urls.items():
        monkeypatch.setenv(name, url)
    return str(request.param)
