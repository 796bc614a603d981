"""Signals on the whole road: what is found in a study that arrives reaches real receivers, outages or not."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hl7
import pytest

from peers import dcmsend, wait_until
from plugin.bootstrap import Plugin
from plugin.settings import Settings
from receivers import SECRET, Receiver, receiving
from road import Road, head_ct, road, tiny_bundle, untrained_bundle

EVERYTHING = {"intracranial_hemorrhage": -1.0}
NOTHING = {"intracranial_hemorrhage": 2.0}


def sections(receivers: dict[str, Receiver], **settings: Any) -> dict[str, Any]:
    rows = [
        {"name": name, "kind": name, "address": receiver.address, "secret": SECRET, **settings}
        for name, receiver in receivers.items()
    ]
    return {
        "signals": rows,
        "results": {"key_images": False},  # none are made for the small model's preprocessing
        "delivery": {"first_retry_seconds": 0.2, "longest_retry_seconds": 0.5, "timeout_seconds": 2},
    }


def texts(receiver: Receiver) -> list[str]:
    return [message.get("text") or message["body"] for message in receiver.received]


def states(running: Road) -> dict[str, int]:
    return running.status()["signals_by_state"]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[dict[str, Receiver]]:
    with (
        receiving("mllp", tmp_path / "ris") as ris,
        receiving("http", tmp_path / "fhir") as fhir,
        receiving("http", tmp_path / "hook") as hook,
    ):
        yield {"hl7": ris, "fhir": fhir, "webhook": hook}


def test_each_critical_result_reaches_every_receiver_after_outages_and_repeats_are_recognisable(
    tmp_path: Path, three: dict[str, Receiver], stack: str
) -> None:
    modes = {"hl7": "cut", "fhir": "later", "webhook": "silent"}
    for kind, receiver in three.items():
        receiver.behave(modes[kind])
    options = {"model": {"bundle": str(tiny_bundle())}, "thresholds": EVERYTHING, **sections(three)}
    with road(tmp_path, **options) as running:
        for name in ("a", "b"):
            dcmsend(running.port, head_ct(tmp_path, name=name, PatientName="Canary^Jane")[0].parent)
        for receiver in three.values():
            wait_until(lambda receiver=receiver: len(receiver.received) >= 3, "tries", 90)
            receiver.stop()
        wait_until(lambda: states(running).get("waiting") == 6, "all to wait", 90)
        for receiver in three.values():
            receiver.behave("ok")
            receiver.start()
        wait_until(lambda: states(running) == {"delivered": 6}, "all to be told", 90)
    for receiver in three.values():
        different = set(texts(receiver))
        assert len(different) == 2 < len(receiver.received), "two studies, each more than once"
    keys = {message["headers"]["Idempotency-Key"] for message in three["webhook"].received}
    assert len(keys) == 2
    assert len({re.search(r"\|ORU\^R01\^ORU_R01\|(\w+)\|", text)[1] for text in texts(three["hl7"])}) == 2  # type: ignore[index]


def test_a_positive_that_is_gone_is_corrected(tmp_path: Path, three: dict[str, Receiver]) -> None:
    options = {"model": {"bundle": str(tiny_bundle())}, **sections(three)}
    first = head_ct(tmp_path, number=2)[0].parent
    with road(tmp_path, thresholds=EVERYTHING, **options) as running:
        dcmsend(running.port, first)
        wait_until(lambda: states(running) == {"delivered": 3}, "the first signals", 90)
    with road(tmp_path, thresholds=NOTHING, **options) as running:
        dcmsend(running.port, head_ct(tmp_path, number=3)[0].parent)
        wait_until(lambda: states(running) == {"delivered": 6}, "the corrections", 90)
    message = hl7.parse(texts(three["hl7"])[1])
    assert str(message.segment("OBR")(25)) == "C" and str(message.segments("OBX")[0](11)) == "C"
    before, after = (json.loads(text)["entry"] for text in texts(three["fhir"]))
    assert [entry["request"] for entry in before] == [entry["request"] for entry in after]
    assert [entry["resource"]["status"] for entry in after] == ["amended"] * 2
    assert json.loads(texts(three["webhook"])[1])["status"] == "corrected"


def test_an_untrained_model_signals_nothing_unless_a_setting_says_so(
    tmp_path: Path, three: dict[str, Receiver]
) -> None:
    model = {"model": {"bundle": str(untrained_bundle())}, "thresholds": EVERYTHING}
    with road(tmp_path, **model, **sections(three)) as running:
        dcmsend(running.port, head_ct(tmp_path)[0].parent)
        wait_until(lambda: states(running) == {"held": 3}, "signals held back", 90)
    assert [receiver.received for receiver in three.values()] == [[], [], []]
    allowed = sections(three, send_results_of_untrained_or_phantom_models=True)
    with road(tmp_path / "test", **model, **allowed) as running:
        dcmsend(running.port, head_ct(tmp_path, name="b")[0].parent)
        wait_until(lambda: states(running) == {"delivered": 3}, "signals", 90)
    for receiver in three.values():
        assert "UNTRAINED MODEL" in texts(receiver)[0]


def test_a_refusal_is_seen_and_names_no_patient(
    tmp_path: Path, three: dict[str, Receiver], capsys: pytest.CaptureFixture[str]
) -> None:
    for receiver in three.values():
        receiver.behave("refuse")
    options = {"model": {"bundle": str(tiny_bundle())}, "thresholds": EVERYTHING, **sections(three)}
    with road(tmp_path, **options) as running:
        dcmsend(running.port, head_ct(tmp_path, PatientName="Canary^Jane", PatientID="CANARY-1")[0].parent)
        wait_until(lambda: states(running) == {"refused": 3}, "refusals", 90)
        (study,) = running.status()["studies"]
    shown = {signal["receiver"]: signal["detail"] for signal in study["signals"]}
    assert shown == {"hl7": "AE, error 207", "fhir": "HTTP 400", "webhook": "HTTP 400"}
    printed = capsys.readouterr()
    assert "signal refused" in printed.err and "canary" not in (printed.out + printed.err + json.dumps(study)).lower()
    assert all("Canary" in texts(receiver)[0] for receiver in three.values())


def test_a_finding_that_the_model_does_not_know_is_told(tmp_path: Path) -> None:
    rows = [{"name": "x", "kind": "hl7", "address": "mllp://h:1", "findings": ["goitre"]}]
    plugin = Plugin(Settings(spool={"folder": tmp_path}, model={"bundle": str(tiny_bundle())}, signals=rows))
    with pytest.raises(ValueError, match="goitre"):
        _ = plugin.bundle
