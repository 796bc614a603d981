"""A signal of a study that never was, with which a site's template is tried at the start."""

from plugin.index.signals import SignalErrand
from plugin.lifecycle import SignalStatus

_CODE = {"value": "1386000", "scheme": "SCT", "meaning": "Intracranial hemorrhage"}
_SITE = {"value": "12738006", "scheme": "SCT", "meaning": "Brain"}
_FINDING = {
    "label": "intracranial_hemorrhage",
    "name": "Intracranial hemorrhage",
    "critical": True,
    "positive": True,
    "score": 0.31,
    "probability": 0.93,
    "threshold": 0.5,
    "code": _CODE,
    "site": _SITE,
}

EXAMPLE = SignalErrand(
    receiver="example",
    study_instance_uid="2.25.1",
    key="0123456789abcdef0123456789abcdef",
    status=SignalStatus.CORRECTED,
    corrects="fedcba9876543210fedcba9876543210",
    retracted=("midline_shift",),
    created_at=1_795_000_000.0,
    content={
        "notice": "Research software, not for diagnosis.",
        "sentence": "Present: Intracranial hemorrhage.",
        "revision": 2,
        "is_partial": False,
        "analysed_at": "2026-11-24T13:05:07+01:00",
        "installation_uid": "2.25.2",
        "software_version": "0",
        "model": {
            "name": "example",
            "version": "1",
            "status": "trained",
            "digests": [{"what": "bundle sha256", "value": "0" * 64}],
        },
        "patient": {
            "id": "P1",
            "issuer": "",
            "name": {"family": "Doe", "given": "Jane", "middle": "", "prefix": "", "suffix": ""},
            "birth_date": "19500102",
            "sex": "F",
        },
        "study": {
            "study_instance_uid": "2.25.1",
            "accession_number": "A1",
            "date": "20261124",
            "time": "120000",
            "description": "CT head",
            "id": "1",
            "placer_order_number": "",
            "modality": "CT",
        },
        "findings": [
            _FINDING,
            {**_FINDING, "label": "midline_shift", "positive": False, "probability": None, "threshold": None},
        ],
        "results": [{"sop_instance_uid": "2.25.3", "series_instance_uid": "2.25.4", "description": "AI summary"}],
    },
)
