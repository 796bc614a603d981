"""Metrics, health, and logs: what a site watches us by, true and without identities."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from peers import free_port, wait_until
from plugin import health, metrics, site_metrics
from plugin.bootstrap import Plugin
from plugin.health import NEEDS, Health, answering
from plugin.lifecycle import WORK_QUEUES
from plugin.roles import ROLES, SIGNAL_ROLE
from plugin.settings import MetricsSettings, Settings

HLIP = Path(sys.executable).parent / "hlip"
DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana" / "hlip.json"


def plugin(folder: Path, **sections: Any) -> Plugin:
    return Plugin(Settings(spool={"folder": folder / "data"}, **sections))


@pytest.fixture
def ready(tmp_path: Path) -> Iterator[Plugin]:
    made = plugin(tmp_path)
    made.database.upgrade()
    yield made
    made.database.close()


def samples(text: bytes) -> dict[str, list[tuple[dict[str, str], float]]]:
    """By name, as Prometheus reads it."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_every_metric_that_the_dashboard_names_is_exported() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    named = {name for query in queries for name in re.findall(r"\b(?:hlip|process)_\w+", query)}
    assert len(named) > 20 and named <= site_metrics.exported()


def test_every_metric_that_counts_is_on_the_dashboard() -> None:
    text = DASHBOARD.read_text()
    for metric in metrics.REGISTRY.collect():
        assert metric.name in text or not metric.name.startswith("hlip_"), metric.name
    assert [name for name in site_metrics.GAUGES if name not in text] == ["hlip_state_series"]


def test_the_dashboard_uses_labels_that_there_are() -> None:
    labels = {name: set(names) for name, (_, names) in site_metrics.GAUGES.items()}
    for metric in (metrics.INSTANCES, metrics.DELIVERIES, metrics.SIGNALS, metrics.SERIES, metrics.STUDIES):
        labels[f"{metric._name}_total"] = set(metric._labelnames)
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            (first, *_) = re.findall(r"\bhlip_\w+", target["expr"]) or [""]
            if len(re.findall(r"\bhlip_\w+", target["expr"])) == 1 and first in labels:
                assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels[first], target["expr"]


def test_the_index_is_told_by_scheduler_and_web_and_every_queue_and_state_is_named(ready: Plugin) -> None:
    told = samples(site_metrics.Page(ready, "schedule").text())
    assert {labels["queue"] for labels, _ in told["hlip_queue_waiting"]} == set(WORK_QUEUES)
    assert ({"queue": "analyse", "urgency": "triage"}, 0) in told["hlip_queue_waiting"]
    assert ({"state": "refused"}, 0) in told["hlip_state_signals"]
    assert told["hlip_up_index"] == [({}, 1)] and told["hlip_arrivals_waiting"] == [({}, 0)]
    assert told["hlip_disk_free_bytes"][0][1] > 0
    assert "hlip_queue_waiting" not in samples(site_metrics.Page(ready, "prepare").text())


def test_an_index_that_is_away_or_not_made_yet_is_told_and_the_rest_is_too(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://hlip:hunter2@127.0.0.1:{free_port()}/hlip"
    for made in (plugin(tmp_path), plugin(tmp_path, index={"url": url})):
        told = samples(site_metrics.Page(made, "web").text())
        assert told["hlip_up_index"] == [({}, 0)] and "hlip_disk_free_bytes" in told
        made.database.close()


def test_every_role_has_its_needs_and_its_port() -> None:
    roles = {*(name for name in ROLES | SIGNAL_ROLE)}
    assert set(NEEDS) == roles
    ports = {name.removesuffix("_port") for name in MetricsSettings.model_fields if name.endswith("_port")}
    assert ports == roles - {"web"}
    with pytest.raises(ValidationError):
        MetricsSettings(listen_port=70000)


def test_a_role_answers_at_its_port_only_where_it_has_one(ready: Plugin, tmp_path: Path) -> None:
    with answering(ready, ("prepare",)) as port:
        assert port == 0
    port = free_port()
    made = plugin(tmp_path, metrics={"deliver_port": port})
    with answering(made, ("signal", "deliver")) as taken:
        assert taken == port
        url = f"http://127.0.0.1:{port}"
        assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}
        answer = requests.get(f"{url}/readyz", timeout=10)
        assert answer.status_code == 200
        assert answer.json() == {"status": "ready", "checks": {"database": "ok", "broker": "ok"}}
        text = requests.get(f"{url}/metrics", timeout=10)
        assert text.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert any(labels["role"] == "signal" for labels, _ in samples(text.content)["hlip_role_info"])
        assert requests.get(f"{url}/etc/passwd", timeout=10).status_code == 404
        assert requests.post(f"{url}/healthz", timeout=10).status_code == 501
    made.database.close()


def test_what_is_not_ready_is_said_without_a_secret(tmp_path: Path) -> None:
    away = free_port()
    made = plugin(
        tmp_path,
        index={"url": f"postgresql+psycopg://hlip:hunter2@127.0.0.1:{away}/hlip"},
        broker={"url": f"amqp://hlip:hunter2@127.0.0.1:{away}//"},
        model={"bundle": str(tmp_path / "no bundle")},
    )
    looked = Health(made, ("prepare",))
    status, _, body = looked.answer("/readyz")
    found = json.loads(body)
    assert (status, found["status"]) == (503, "not ready")
    assert found["checks"]["room for work"] == "ok"
    assert all(found["checks"][name] != "ok" for name in ("database", "broker", "bundle"))
    assert "hunter2" not in body.decode()
    looked.close()
    made.database.close()


def test_a_full_disk_or_an_old_index_is_not_ready(tmp_path: Path) -> None:
    full = Plugin(Settings(spool={"folder": tmp_path / "data", "min_free_gigabytes": 1e9}))
    assert "nearly full" in Health(full, ("listen",)).readiness()["disk"]
    assert "hlip schedule" in Health(full, ("web",)).readiness()["database"]
    full.database.close()


def test_a_check_that_hangs_does_not_hang_the_answer(ready: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    monkeypatch.setitem(health.CHECKS, "database", lambda _: hang.wait(20))
    monkeypatch.setattr(health, "CHECK_SECONDS", 1.0)
    looked = Health(ready, ("schedule",))
    assert looked.readiness() == {"database": "no answer within 1 s", "broker": "ok"}
    hang.set()
    looked.close()


def test_labels_are_words_of_the_code_and_the_settings() -> None:
    """Whoever adds a label for what comes with a study is reminded here."""
    known = {"outcome", "way", "fate", "reason", "critical", "stage", "destination", "receiver", "queue", "role",
             "version", "state", "urgency", "what"}  # fmt: skip
    used = {label for _, labels in site_metrics.GAUGES.values() for label in labels}
    counters = [value for value in vars(metrics).values() if hasattr(value, "_labelnames")]
    used |= {label for counter in counters for label in counter._labelnames}
    assert len(counters) > 10 and used <= known


def test_a_log_of_json_is_json_in_every_line(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HLIP_SPOOL__FOLDER": str(tmp_path / "data"),
        "HLIP_LOG__FORMAT": "json",
        "HLIP_BROKER__URL": f"amqp://hlip:hunter2@127.0.0.1:{free_port()}//",
    }
    made = plugin(tmp_path)
    made.database.upgrade()
    made.database.close()
    log = tmp_path / "log"
    with log.open("wb") as output:
        worker = subprocess.Popen([HLIP, "work", "--queue", "deliver"], env=environment, stdout=output, stderr=output)
        try:
            wait_until(lambda: b"127.0.0.1" in log.read_bytes(), "the broker's absence", 120)
        finally:
            worker.terminate()
            worker.wait(30)
    written = log.read_text().splitlines()
    goodbye = [line for line in written if line in ("", "worker: Warm shutdown (MainProcess)")]  # Celery prints it
    lines = [json.loads(line) for line in written if line not in goodbye]
    assert lines and all({"event", "level", "timestamp"} <= set(line) for line in lines)
    assert "hunter2" not in log.read_text()
