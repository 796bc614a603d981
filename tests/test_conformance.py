"""The conformance statement says what the code does: the tables of deploy/CONFORMANCE.md are held against it."""

import re
from functools import cache
from pathlib import Path

import pytest
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from hlip_core.pixels import PLUGINS
from plugin import admission, commitment, delivery, storage, tls
from plugin.listener import storage_contexts
from plugin.negotiation import APPLICATION_CONTEXT_NAME
from plugin.results import codes
from plugin.results.identity import KINDS, REJECTION, SOFTWARE_VERSION
from plugin.settings import Settings
from plugin.sop_classes import ACCEPTED, CONTENT, OTHER_IMAGES
from plugin.web import store_response

STATEMENT = Path(__file__).resolve().parents[1] / "deploy" / "CONFORMANCE.md"
UNCOMPRESSED = {
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
}


@cache
def text() -> str:
    return STATEMENT.read_text()


def table(first_heading: str) -> list[list[str]]:
    """The rows below the table head that begins with a heading."""
    lines = text().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def section(number: str) -> str:
    return re.split(r"^#+ ", text().split(f" {number} ", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_it_is_of_this_version() -> None:
    assert text().splitlines()[0].endswith(f"hlip-pacs {SOFTWARE_VERSION}")


def test_its_sop_classes_are_those_that_the_listener_takes() -> None:
    use = {uid: "kept, starts nothing" for uid in ACCEPTED}
    use |= dict.fromkeys(CONTENT, "analysed") | dict.fromkeys(OTHER_IMAGES, "refused with a reason")
    assert table("SOP class") == [[UID(uid).name, uid, use[uid]] for uid in ACCEPTED]
    offered = {str(context.abstract_syntax) for context in storage_contexts()}
    assert offered == {*ACCEPTED, "1.2.840.10008.1.1"}


def test_its_transfer_syntaxes_are_those_that_the_listener_takes_and_the_model_reads() -> None:
    decoded = {*UNCOMPRESSED, *PLUGINS}
    rows = table("transfer syntax")
    assert rows == [[uid.name, uid, "yes" if uid in decoded else "no"] for uid in AllTransferSyntaxes]
    for context in storage_contexts():
        if context.abstract_syntax in ACCEPTED:
            assert set(context.transfer_syntax) == {row[1] for row in rows}
            assert context.transfer_syntax[0] == ExplicitVRLittleEndian


def test_its_settings_have_their_defaults() -> None:
    rows = re.findall(r"^\| [^|]* \| `listener\.(\w+)` \| (.*) \|$", text(), re.MULTILINE)
    listener = Settings().listener
    assert len(rows) == 9 and {key: value for key, value in rows} == {
        key: f"{getattr(listener, key)}" for key, _ in rows
    }


def test_every_setting_that_it_names_is_one() -> None:
    settings = Settings()
    for name, key in re.findall(r"`([a-z]+)\.(\w+)`", text()):
        assert hasattr(getattr(settings, name, None), key), f"{name}.{key}"


def test_its_rejections_and_statuses_are_those_of_the_code() -> None:
    rejections = {tuple(map(int, row[:3])) for row in table("result")}
    in_code = {value[:3] for value in vars(admission).values() if isinstance(value, admission.Rejection)}
    assert rejections == in_code
    statuses = {int(row[0], 16) for row in table("status") if row[0].startswith("0x")}
    in_code = {storage.SUCCESS, storage.OUT_OF_RESOURCES, storage.DOES_NOT_MATCH_SOP_CLASS, storage.CANNOT_UNDERSTAND}
    assert statuses == in_code


def test_its_http_statuses_are_those_of_the_store_service() -> None:
    said = {int(found) for found in re.findall(r"^\| (\d{3}) \|", section("2.4"), re.MULTILINE)}
    sources = [Path(store_response.__file__), Path(store_response.__file__).with_name("stow.py")]
    raised = {int(n) for path in sources for n in re.findall(r"HTTPException\((\d+)", path.read_text())}
    assert said == raised | {200, 202, 409} | set(store_response.ALONE.values())


def test_its_storage_commitment_is_that_of_the_code() -> None:
    part = section("2.3")
    assert str(StorageCommitmentPushModel) in part and str(commitment.MAX_REFERENCES) in part
    assert set(build_context(StorageCommitmentPushModel).transfer_syntax) == UNCOMPRESSED
    answers = {int(found, 16) for found in re.findall(r"0x\w{4}", part.partition("N-ACTION")[2].partition("\n")[0])}
    assert answers == {
        commitment.SUCCESS, commitment.NO_SUCH_OBJECT_INSTANCE, commitment.INVALID_ARGUMENT_VALUE,
        commitment.NO_SUCH_ACTION, commitment.NOT_AUTHORIZED, commitment.RESOURCE_LIMITATION,
    }  # fmt: skip
    assert Settings().commitment.enabled is False


def test_its_rules_for_deliveries_are_those_of_the_code() -> None:
    row = next(line for line in section("2.5").splitlines() if "0xA7xx" in line)
    assert {int(found) for found in re.findall(r"\b4\d\d\b", row)} == delivery.RETRY_HTTP


def test_its_results_are_the_kinds_of_the_code() -> None:
    rows = [row[:5] for row in table("kind")]
    assert rows == [
        [k.name, UID(k.sop_class_uid).name, str(k.sop_class_uid), k.modality, str(k.series_number)] for k in KINDS
    ]
    kept = {row[1] for row in table("SOP class")} | {REJECTION.sop_class_uid}
    assert {str(kind.sop_class_uid) for kind in KINDS} <= kept  # they come back from the PACS


@pytest.mark.parametrize("word", [codes.PRIVATE_SCHEME, "UNVERIFIED", "PRELIMINARY", str(APPLICATION_CONTEXT_NAME)])
def test_it_names(word: str) -> None:
    assert word in text()


def test_its_security_is_that_of_the_code() -> None:
    assert tls.CIPHERS == "ECDHE+AESGCM:ECDHE+CHACHA20" and "ECDHE with AES-GCM or ChaCha20" in text()
    assert "TLS 1.2 or newer" in section("5")
