"""Who may open an association: by AE title, and by the network that it comes from."""

import pytest
from pydantic import ValidationError
from pynetdicom import AE, evt
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from peers import wait_until
from plugin.admission import (
    CALLED_AE_TITLE_NOT_RECOGNIZED,
    CALLING_AE_TITLE_NOT_RECOGNIZED,
    LOCAL_LIMIT_EXCEEDED,
    Rejection,
    Request,
    admission,
)
from plugin.dimse import Peer, echo
from plugin.listener import listening
from plugin.settings import ListenerSettings
from plugin.spool import Spool

PEERS = [
    {"ae_title": "CT1", "addresses": ["10.1.0.0/16", "fd00:1::/32"]},
    {"ae_title": "CT2"},
    {"ae_title": "CT3", "addresses": ["10.3.0.1/32"]},
    {"ae_title": "CT3", "addresses": ["10.3.0.2/32"]},
]


def judge(title: str, address: str, *, num_open: int = 0, **settings: object) -> Rejection | None:
    request = Request(calling_ae_title=title, called_ae_title="HLIP", address=address)
    return admission(request, ListenerSettings(**settings), num_open=num_open)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("title", "address"),
    [
        ("CT1", "10.1.2.3"),
        ("CT1", "::ffff:10.1.2.3"),
        ("CT1", "fd00:1::7"),
        ("CT1", "fd00:1::7%eth0"),
        ("CT2", "192.0.2.1"),
        ("CT3", "10.3.0.2"),
        ("OLD", "192.0.2.1"),
    ],
)
def test_a_named_sender_from_its_network_is_let_in(title: str, address: str) -> None:
    assert judge(title, address, peers=PEERS, calling_ae_titles=("OLD",)) is None


@pytest.mark.parametrize(
    ("title", "address"),
    [
        ("EVIL", "10.1.2.3"),
        ("", "10.1.2.3"),
        ("ct1", "10.1.2.3"),
        ("CT1", "10.2.0.1"),
        ("CT1", "::ffff:10.2.0.1"),
        ("CT1", "fd00:2::7"),
        ("CT3", "10.3.0.3"),
    ],
)
def test_a_title_or_an_address_outside_the_table_is_not_recognized(title: str, address: str) -> None:
    """Result 1, source 1, reason 3 of PS3.8 Table 9-21; the first list does not widen what the table says."""
    rejection = judge(title, address, peers=PEERS, calling_ae_titles=("OLD", "CT1"))
    assert rejection == CALLING_AE_TITLE_NOT_RECOGNIZED
    assert rejection[:3] == (1, 1, 3)


def test_without_any_name_everyone_is_let_in() -> None:
    assert judge("ANY", "192.0.2.1") is None


def test_a_stranger_learns_nothing_but_that() -> None:
    """Who calls is judged before whom it calls, and before how busy we are."""
    full = {"peers": PEERS, "max_associations": 1, "check_called_ae_title": True, "ae_title": "OTHER"}
    assert judge("EVIL", "10.1.2.3", num_open=1, **full) == CALLING_AE_TITLE_NOT_RECOGNIZED
    assert judge("CT2", "10.1.2.3", num_open=1, **full) == CALLED_AE_TITLE_NOT_RECOGNIZED
    assert judge("CT2", "10.1.2.3", num_open=1, peers=PEERS, max_associations=1) == LOCAL_LIMIT_EXCEEDED


@pytest.mark.parametrize("address", ["10.1.2.3/8", "hospital.example", "10.1.0.0/33"])
def test_what_is_no_network_is_refused_as_a_setting(address: str) -> None:
    with pytest.raises(ValidationError, match="addresses"):
        ListenerSettings(peers=[{"ae_title": "CT1", "addresses": [address]}])  # type: ignore[list-item]


def test_the_listener_lets_in_by_address(tmp_path) -> None:  # type: ignore[no-untyped-def]
    here = {"ae_title": "CT1", "addresses": ["127.0.0.0/8"]}
    elsewhere = {"ae_title": "CT2", "addresses": ["10.0.0.0/8"]}
    settings = ListenerSettings(port=0, peers=[here, elsewhere])  # type: ignore[list-item]
    with listening(settings, Spool(tmp_path / "data")) as running:

        def is_let_in(title: str) -> bool:
            return echo(Peer(host="127.0.0.1", port=running.port, ae_title="HLIP", calling_ae_title=title))

        assert is_let_in("CT1") and not is_let_in("CT2") and not is_let_in("EVIL")
        ae = AE(ae_title="CT2")
        ae.add_requested_context(Verification)
        answers: list[A_ASSOCIATE_RJ] = []
        handlers = [(evt.EVT_PDU_RECV, lambda event: answers.append(event.pdu))]
        association = ae.associate("127.0.0.1", running.port, ae_title="HLIP", evt_handlers=handlers)
        assert not association.is_established
        answer = wait_until(lambda: answers, "the rejection")[0]
        assert isinstance(answer, A_ASSOCIATE_RJ)
        assert (answer.result, answer.source, answer.reason_diagnostic) == (1, 1, 3)
