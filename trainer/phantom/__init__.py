"""Synthetic CT studies with reports, labels and lesion masks: `write_study` is the way in.

head (a person) and lesions -> truth (attenuation on a fine grid) -> scanner (series) -> ct_image (DICOM) -> study.
"""

from .masks import LesionMask
from .population import LABELS
from .study import PRESETS, Examination, PhantomStudy, read_study, write_study

__all__ = ["LABELS", "PRESETS", "Examination", "LesionMask", "PhantomStudy", "read_study", "write_study"]
