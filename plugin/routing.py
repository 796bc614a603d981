"""Which series are analysed at all: the routing table of the settings, read against a series' header."""

import re
from collections.abc import Iterable

from pydicom import Dataset

from hlip_core.headers import text
from hlip_core.scope import age_years
from plugin.settings import RoutingRule


def _fits(rule: RoutingRule, header: Dataset) -> bool:
    description = f"{text(header, 'StudyDescription')} {text(header, 'SeriesDescription')}"
    values = (
        (rule.modality, text(header, "Modality")),
        (rule.body_part, text(header, "BodyPartExamined")),
        (rule.description, description),
    )
    age = age_years(header)
    return all(re.search(pattern, value, re.IGNORECASE) for pattern, value in values) and (
        age is None or rule.min_age_years <= age <= rule.max_age_years
    )


def route(header: Dataset, rules: Iterable[RoutingRule]) -> RoutingRule | None:
    """The first rule that fits the series; None where none does, or where it says ``skip``."""
    rule = next((rule for rule in rules if _fits(rule, header)), None)
    return rule if rule is not None and rule.action == "analyse" else None
