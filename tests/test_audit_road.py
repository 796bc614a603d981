"""What happens at a site is in the audit trail: received, stored, sent, turned away, removed."""

import base64
from pathlib import Path

import pytest
from pydicom import dcmread

from audit_messages import parsed, trail
from certificates import Authority
from peers import orthanc, storescu, wait_until
from plugin import tls
from plugin.bootstrap import Plugin
from plugin.listener import listening
from plugin.retention import Retention
from plugin.settings import ListenerSettings, Settings
from plugin.spool import Spool
from road import head_ct, road, tiny_bundle
from studies import head_series
from web import web


@pytest.mark.parametrize("names_patients", [False, True])
def test_results_that_were_sent_are_in_the_trail_and_the_patient_only_if_asked(
    tmp_path: Path, names_patients: bool
) -> None:
    from peers import dcmsend

    file = tmp_path / "audit.log"
    with (
        orthanc(tmp_path / "pacs") as pacs,
        road(
            tmp_path,
            destinations=[{"name": "pacs", "url": pacs.dicomweb}],
            model={"bundle": str(tiny_bundle())},
            audit={"file": str(file), "patient_ids": names_patients},
        ) as plugin,
    ):
        dcmsend(plugin.port, head_ct(tmp_path, PatientID="CANARY-1", PatientName="Canary^Jane")[0].parent)
        study = plugin.settled(instances=12)["studies"][0]
    messages = [parsed(line) for line in file.read_bytes().splitlines()]
    sent = [m for m in messages if any(p.attrib["UserID"] == "pacs" for p in m.findall("ActiveParticipant"))]
    assert len(sent) == 1
    objects = [o.attrib["ParticipantObjectID"] for o in sent[0].findall("ParticipantObjectIdentification")]
    assert objects == [study["study_instance_uid"], *(["CANARY-1"] if names_patients else [])]
    assert b"Jane" not in file.read_bytes()


def test_the_listener_tells_what_it_received_and_whom_it_turned_away(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    authority = Authority(tmp_path / "ca", "hospital")
    ours, theirs = authority.issue("hlip"), authority.issue("modality")
    settings = ListenerSettings(
        port=0, calling_ae_titles=("CT1",), tls_ca=str(authority.certificate), **ours.settings
    )  # fmt: skip
    spool = Spool(tmp_path / "data")
    context = tls.server_context(settings, require_certificate=True)
    secure = ("+tls", str(theirs.key), str(theirs.certificate), "+cf", str(authority.certificate))
    paths = [*head_ct(tmp_path, name="a"), *head_ct(tmp_path, name="b", slices=3)]
    with listening(settings, spool, ssl_context=context, audit=trail(tmp_path, file=str(file))) as listener:
        storescu(listener.port, paths, *secure, "-aet", "CT1")
        storescu(listener.port, paths, *secure, "-aet", "EVIL")
        storescu(listener.port, paths, "-aet", "CT1")
        wait_until(lambda: len(file.read_bytes().splitlines()) == 4, "the four messages")
    messages = [parsed(line) for line in file.read_bytes().splitlines()]
    received = {
        next(iter(m.findall("ParticipantObjectIdentification"))).attrib["ParticipantObjectID"]: [
            s.attrib["NumberOfInstances"] for s in m.iter("SOPClass")
        ]
        for m in messages[:2]
    }
    studies = {dcmread(path).StudyInstanceUID: 0 for path in paths}
    assert list(received.values()) == [["12"], ["3"]] and set(received) == set(studies)
    peers = [m.findall("ActiveParticipant")[1].attrib for m in messages[2:]]
    assert [p["UserID"] for p in peers] == ["EVIL", "unknown"]
    assert {p["NetworkAccessPointID"] for p in peers} == {"127.0.0.1"}
    details = [m.find(".//ParticipantObjectDetail").attrib["value"] for m in messages[2:]]  # type: ignore[union-attr]
    said = [base64.b64decode(value).decode() for value in details]
    assert said[0] == "calling AE title not recognized" and said[1].startswith("TLS: ")


def test_stow_tells_what_it_stored_and_who_had_no_token(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    images = head_series(3)
    with web(tmp_path, audit={"file": str(file)}, stow_token="a token of the tests") as server:
        assert server.store(images).status_code == 401
        assert server.store(images, Authorization="Bearer a token of the tests").status_code == 200
    turned_away, stored = (parsed(line) for line in file.read_bytes().splitlines())
    assert turned_away.find("EventIdentification/EventID").attrib["csd-code"] == "110113"  # type: ignore[union-attr]
    assert stored.find("ParticipantObjectIdentification").attrib["ParticipantObjectID"] == images[0].StudyInstanceUID  # type: ignore[union-attr]
    assert [row.attrib["NumberOfInstances"] for row in stored.iter("SOPClass")] == ["3"]


def test_what_is_removed_for_good_is_in_the_trail(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    plugin = Plugin(Settings(spool={"folder": tmp_path / "data"}, audit={"file": str(file)}))
    plugin.database.upgrade()
    old = plugin.spool.conflicting / "1.2.3"
    old.mkdir(parents=True)
    (old / "1.dcm").write_bytes(b"other content")
    rules = Retention({"conflicting": 1e-9}, plugin.spool, plugin.database, audit=plugin.audit)
    assert [going.study_instance_uid for going in rules.run(frozenset)] == ["1.2.3"]
    (message,) = (parsed(line) for line in file.read_bytes().splitlines())
    assert message.find("EventIdentification/EventID").attrib["csd-code"] == "110105"  # type: ignore[union-attr]
    assert message.find("ParticipantObjectIdentification").attrib["ParticipantObjectID"] == "1.2.3"  # type: ignore[union-attr]
