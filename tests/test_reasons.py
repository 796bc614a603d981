"""The reason codes and the error tree."""

import re

import pytest

from hlip_core import errors
from hlip_core.reasons import REASONS, Reason


def test_every_reason_has_a_row_and_a_sentence_for_a_reader() -> None:
    assert set(REASONS) == set(Reason)
    for reason in Reason:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", reason.value)
        assert reason.sentence.endswith(".") and reason.sentence[0].isupper()
        assert reason.kind in ("out_of_scope", "defect")


def test_no_two_reasons_share_a_sentence() -> None:
    assert len({reason.sentence for reason in Reason}) == len(Reason)


def test_only_a_defect_makes_a_study_partial() -> None:
    assert Reason.LOCALIZER.kind == "out_of_scope"
    assert Reason.UNDECODABLE.kind == "defect"


def test_a_refusal_says_its_code_and_what_was_found() -> None:
    refused = errors.Refused(Reason.TOO_FEW_SLICES, "4 slices, at least 8 are needed")
    assert str(refused) == "too_few_slices: 4 slices, at least 8 are needed"
    assert str(errors.Refused(Reason.LOCALIZER)) == "localizer"


def test_every_error_is_a_hlip_error_with_a_sentence() -> None:
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, errors.HlipError)
        assert error.__doc__


def test_a_checkpoint_mismatch_counts_and_names_the_parameters() -> None:
    error = errors.CheckpointMismatch(missing=["a", "b", "c", "d"], misshapen=["e"])
    assert str(error).endswith("4 missing (a, b, c); 1 misshapen (e)")
    assert error.unexpected == ()
    with pytest.raises(errors.BundleError):
        raise error
