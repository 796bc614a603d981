"""Who did what on the page is in the audit trail."""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock
from xml.etree import ElementTree as ET

import pytest

from audit_messages import check, event, parsed
from plugin.index import people
from visitors import RETRY, STUDY, Page, add_user, forget_guesses, peopled, showing


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with peopled(tmp_path_factory.mktemp("page")) as shown:
        yield shown


@pytest.fixture(autouse=True)
def no_guesses(page: Page) -> None:
    forget_guesses(page)


def trail(page: Page) -> list[ET.Element]:
    file = Path(page.plugin.settings.audit.file)  # there is none before the first message
    return [parsed(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def person_of(message: ET.Element) -> dict[str, str]:
    participant = message.find("ActiveParticipant")
    assert participant is not None
    return participant.attrib


def test_who_did_what_is_in_the_audit_trail(page: Page) -> None:
    before = len(trail(page))
    page.visitor().sign_in("vera", "wrong")
    operator = page.signed_in("otto")
    operator.post(RETRY, data={"csrf_token": operator.csrf, "study_uid": STUDY})
    operator.post("/sign-out", data={"csrf_token": operator.csrf})
    failed, signed_in, retried, signed_out = trail(page)[before:]
    for message in (failed, signed_in, retried, signed_out):
        check(message)
    events = [event(message) for message in (failed, signed_in, retried, signed_out)]
    assert events == [
        "User Authentication Login", "User Authentication Login", "DICOM Instances Accessed Take up again",
        "User Authentication Logout",
    ]  # fmt: skip
    outcome = failed.find("EventIdentification")
    assert outcome is not None and outcome.attrib["EventOutcomeIndicator"] == "4"
    assert person_of(retried) == {
        "UserID": "otto", "UserIsRequestor": "true", "NetworkAccessPointID": "127.0.0.1",
        "NetworkAccessPointTypeCode": "2",
    }  # fmt: skip
    objects = [each.attrib["ParticipantObjectID"] for each in retried.findall("ParticipantObjectIdentification")]
    assert objects == [STUDY, "4711"]


def test_a_view_that_the_trail_could_not_keep_is_told_the_next_time(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_user(page.plugin, "victor", "viewer")
    visitor = page.signed_in("victor")

    def views() -> int:
        return sum(event(message).startswith("DICOM Instances Accessed") for message in trail(page)[before:])

    before = len(trail(page))
    with monkeypatch.context() as failing:
        failing.setattr("plugin.audit.append", Mock(side_effect=OSError(28, "full"), __name__="append"))
        visitor.get("/worklist")
    visitor.get("/worklist")
    first = views()
    visitor.get("/worklist")
    assert views() == first > 0
    people.remove_user(page.plugin.database, "victor")


def test_a_list_names_a_study_to_the_same_person_once_in_a_while() -> None:
    from plugin.audit_message import Actor
    from plugin.web.seen import Seen

    seen = Seen()
    assert seen.new(Actor("vera"), ["1.1", "1.2"]) == ["1.1", "1.2"]
    seen.mark(Actor("vera"), "1.2")
    assert seen.new(Actor("vera"), ["1.1", "1.2"]) == ["1.1"]
    assert seen.new(Actor("vera"), ["1.2", "1.3"]) == ["1.3"]
    assert seen.new(Actor("otto"), ["1.2"]) == ["1.2"]


def test_behind_a_proxy_people_are_audited_and_slowed_down_by_their_own_address(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    web = {"trusted_proxies": ["127.0.0.1"], "public_url": "http://127.0.0.1", "stow": False}
    with showing(tmp_path, web=web, audit={"file": str(file)}) as behind:
        add_user(behind.plugin, "vera", "viewer")
        visitor = behind.visitor()
        visitor.headers["X-Forwarded-For"] = "10.1.2.3"
        assert visitor.sign_in("vera", "wrong").status_code == 401
        assert people.failures(behind.plugin.database, "address 10.1.2.3")[0] == 1
    assert person_of(parsed(file.read_bytes().splitlines()[0]))["NetworkAccessPointID"] == "10.1.2.3"
