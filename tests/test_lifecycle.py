"""The tables of states: every state is reached, every end is an end, waits grow up to their limit."""

import pytest

from plugin.lifecycle import (
    DELIVERY_DONE,
    DELIVERY_STEPS,
    FETCH_DONE,
    FETCH_STEPS,
    SERIES_DONE,
    SERIES_STEPS,
    STUDY_DONE,
    STUDY_STEPS,
    DeliveryState,
    FetchState,
    SeriesState,
    StudyState,
    Urgency,
    backoff_seconds,
    urgency,
)

BORN = {SeriesState.IGNORED, StudyState.IGNORED, DeliveryState.WAITING, DeliveryState.HELD}
LIVES = [
    (SeriesState, SERIES_STEPS, SERIES_DONE),
    (StudyState, STUDY_STEPS, STUDY_DONE),
    (DeliveryState, DELIVERY_STEPS, DELIVERY_DONE),
    (FetchState, FETCH_STEPS, FETCH_DONE),
]


@pytest.mark.parametrize(("states", "steps", "done"), LIVES)
def test_every_state_is_reached(states, steps, done) -> None:  # type: ignore[no-untyped-def]
    assert {step.target for step in steps.values()} | BORN >= set(states)


@pytest.mark.parametrize(("states", "steps", "done"), LIVES)
def test_a_state_that_is_no_end_leads_on_to_one(states, steps, done) -> None:  # type: ignore[no-untyped-def]
    leads_to_end = set(done)
    for _ in states:
        leads_to_end |= {s for step in steps.values() if step.target in leads_to_end for s in step.sources}
    assert leads_to_end >= set(states)


@pytest.mark.parametrize(("states", "steps", "done"), LIVES)
def test_only_a_claim_leads_to_an_outcome(states, steps, done) -> None:  # type: ignore[no-untyped-def]
    busy = {steps["claimed"].target}
    for event in ("prepared", "reported", "delivered", "failed once"):
        if event in steps:
            assert steps[event].sources == busy


def test_waits_double_up_to_the_longest() -> None:
    waits = [backoff_seconds(n, first=5, longest=900) for n in (1, 2, 3, 8, 9, 1000)]
    assert waits == [5, 10, 20, 640, 900, 900]


def test_priorities_have_names() -> None:
    assert [urgency(p) for p in (0, 33, 34, 66, 67, 100)] == [
        Urgency.TRIAGE, Urgency.TRIAGE, Urgency.ROUTINE, Urgency.ROUTINE, Urgency.ARCHIVE, Urgency.ARCHIVE,
    ]  # fmt: skip
