"""Headers of a cohort: at any depth nobody is named, what is written still says how the image was made."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from canaries import ATTRIBUTES, NESTED, PRIVATE, identified
from hlip_core.errors import InputError
from trainer.cohort.headers import deidentified, identities_of
from trainer.cohort.pseudonyms import Pseudonyms, read_salt

SALT = b"s" * 32


def _written(dataset: Dataset, **options: bool) -> dict[str, dict]:
    return deidentified(dataset, Pseudonyms(SALT, **options), patient="p", identities=identities_of(dataset))


def _read(folder: Path) -> Dataset:
    identified(folder, 3, slices=1).write(folder / "study")
    return dcmread(folder / "study" / "000.dcm", defer_size=4096)


def test_no_identity_is_left_at_any_depth(tmp_path: Path) -> None:
    text = json.dumps(_written(_read(tmp_path)), ensure_ascii=False).casefold()
    assert len(ATTRIBUTES) >= 40
    values = [*ATTRIBUTES.values(), *NESTED.values(), *PRIVATE.values()]
    words = {word for value in values for word in value.casefold().replace("^", " ").split() if len(word) > 4}
    assert {word for word in words if word in text} == set()
    assert "7731" not in text, "a UID of the source"


def test_what_says_how_the_image_was_made_is_left(tmp_path: Path) -> None:
    source = _read(tmp_path)
    written = Dataset.from_json(_written(source))
    for keyword in ("Modality", "KVP", "SliceThickness", "Rows", "ImageOrientationPatient", "SOPClassUID"):
        assert written[keyword].value == source[keyword].value
    assert written.PatientIdentityRemoved == "YES"
    assert [code.CodeValue for code in written.DeidentificationMethodCodeSequence] == ["113100", "113107"]
    assert len(written.SourceImageSequence) == 1, "the reference stays, what it names is gone"


def test_uids_agree_with_each_other(tmp_path: Path) -> None:
    first, second = (Dataset.from_json(_written(_read(tmp_path))) for _ in range(2))
    assert first.StudyInstanceUID == second.StudyInstanceUID == Pseudonyms(SALT).uid(_read(tmp_path).StudyInstanceUID)
    assert first.StudyInstanceUID.startswith("2.25.") and len(first.StudyInstanceUID) <= 64


def test_dates_keep_their_distance(tmp_path: Path) -> None:
    source = _read(tmp_path)
    source.StudyDate, source.AcquisitionDate = "20240131", "20240301"
    written = Dataset.from_json(_written(source))
    dates = [date.fromisoformat(str(written[name].value)) for name in ("StudyDate", "AcquisitionDate")]
    assert (dates[1] - dates[0]).days == 30
    assert dates[0] < date(2024, 1, 2)


def test_names_are_read_at_any_depth(tmp_path: Path) -> None:
    known = identities_of(_read(tmp_path))
    assert {"Quillfeather^Zebulona^Ypsi", "Nestlingham^Quenby", "Hiddenleigh^Zora"} <= known.names
    assert {"PZ-771-4092303", "NEZ301155", "19410726"} <= known.numbers
    assert {"Mirkwooden Infirmary", "Burrowdeep Clinique", "ZAPPODROME"} <= known.places


def test_a_hostile_header_is_read_to_its_end() -> None:
    broken = Dataset()
    broken.PatientName = "^".join("ab" for _ in range(20))
    broken.add_new(0x00280030, "DS", "")
    broken._dict[0x00280030] = broken["PixelSpacing"]
    deep = broken
    for _ in range(60):
        item = Dataset()
        item.PatientName = "Deep^Down"
        deep.ReferencedStudySequence = [item]
        deep = item
    assert "Deep" not in json.dumps(_written(broken))


def test_a_salt_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    salt = read_salt(tmp_path / "a" / "salt")
    assert read_salt(tmp_path / "a" / "salt") == salt and len(salt) >= 32
    assert (tmp_path / "a" / "salt").stat().st_mode & 0o777 == 0o600
    (tmp_path / "short").write_text("salt")
    with pytest.raises(InputError, match="at least 32"):
        read_salt(tmp_path / "short")


def test_pseudonyms_change_with_the_salt() -> None:
    one, other = Pseudonyms(SALT), Pseudonyms(b"t" * 32)
    assert one.uid("1.2.3") == one.uid("1.2.3") != other.uid("1.2.3")
    assert one.patient("A ", "1.2") == one.patient("a", "1.3") != one.patient("", "1.3")
    assert one.patient("", "1.2") != one.patient("", "1.3"), "without a PatientID each study is a patient"
