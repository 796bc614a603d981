"""Which way is which in the patient: the letters of Patient Orientation (PS3.3 C.7.6.1.1.1)."""

from collections.abc import Sequence

AXES = ("LR", "PA", "HF")
"""The letters of growing and of falling x, y and z (LPS)."""
OBLIQUE = 0.25
"""A second letter stands for a direction that is turned towards it by about 15 degrees or more."""


def letters(direction: Sequence[float]) -> str:
    """The one or two letters of a unit vector in the patient's coordinates (LPS), the larger component first."""
    largest_first = sorted(zip(direction, AXES, strict=True), key=lambda part: -abs(part[0]))
    return "".join(axis[value < 0] for value, axis in largest_first[:2] if abs(value) >= OBLIQUE)


def edges(orientation: Sequence[float]) -> dict[str, str]:
    """What lies beyond each edge of a slice with that ImageOrientationPatient (along a row, then down a column)."""
    across, down = orientation[:3], orientation[3:]
    return {
        "right": letters(across),
        "bottom": letters(down),
        "left": letters([-value for value in across]),
        "top": letters([-value for value in down]),
    }
