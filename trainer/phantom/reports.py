"""Radiology reports of synthetic studies: true sentences in varied words, with negations and side issues.

PRESENT and ABSENT are what training sees; HELD_OUT never occurs there and asks whether words were understood.
Placeholders: {side}, {region}, {size} (mm), {shift} (mm), {degree}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .lesions import Lesion
    from .study import Examination

PRESENT: dict[str, tuple[str, ...]] = {
    "subdural acute": (
        "Acute subdural hematoma along the {side} {region} convexity measuring {size} mm in thickness.",
        "There is a {degree} hyperdense {side} subdural hematoma.",
        "{degree} crescentic extra-axial hyperdensity over the {side} hemisphere, consistent with acute subdural hemorrhage.",
        "{side} holohemispheric subdural hemorrhage, up to {size} mm.",
        "Subdural blood overlies the {side} {region} lobe.",
        "Acute {side} cerebral convexity subdural hematoma is identified.",
        "Extra-axial collection on the {side}, {size} mm thick, compatible with an acute subdural hematoma.",
        "Findings of {degree} {side} subdural hemorrhage.",
    ),
    "subdural chronic": (
        "Chronic subdural hematoma along the {side} {region} convexity measuring {size} mm.",
        "There is a {degree} hypodense {side} subdural collection, in keeping with chronic subdural hematoma.",
        "Low attenuation {side} subdural fluid collection with a maximal width of {size} mm.",
        "{degree} {side} chronic subdural hemorrhage.",
        "Crescentic hypodense extra-axial collection on the {side}, likely a chronic subdural hematoma.",
    ),
    "epidural": (
        "{side} {region} epidural hematoma measuring {size} mm in thickness.",
        "There is a {degree} biconvex hyperdense extra-axial collection in the {side} {region} region, consistent with epidural hematoma.",
        "Lentiform extra-axial hemorrhage on the {side}, compatible with an acute epidural hematoma.",
        "Acute {side} extradural hematoma, {size} mm.",
        "{degree} epidural hemorrhage underlies the {side} {region} bone.",
        "Lens-shaped epidural blood collection is seen on the {side}.",
    ),
    "intraparenchymal": (
        "{degree} intraparenchymal hemorrhage in the {side} {region}.",
        "There is an acute parenchymal hematoma centered in the {side} {region} measuring {size} mm.",
        "Hyperdense intracerebral hemorrhage in the {side} {region} with surrounding vasogenic edema.",
        "Acute {side} {region} intraparenchymal hematoma.",
        "{size} mm intra-axial hematoma of the {side} {region}.",
        "Intracerebral hemorrhage is identified within the {side} {region}.",
        "Parenchymal hemorrhage in the {side} {region}, likely hypertensive.",
    ),
    "subarachnoid": (
        "{degree} subarachnoid hemorrhage.",
        "Hyperdense blood within the {region}, consistent with subarachnoid hemorrhage.",
        "There is {degree} acute subarachnoid hemorrhage in the {region}.",
        "Subarachnoid blood fills the {region}.",
        "Increased attenuation in the {region} compatible with acute subarachnoid hemorrhage.",
        "Acute subarachnoid hemorrhage is present, most conspicuous in the {region}.",
    ),
    "intraventricular": (
        "{degree} intraventricular hemorrhage.",
        "Hyperdense blood layers within the ventricles, consistent with intraventricular hemorrhage.",
        "There is intraventricular blood in the {side} lateral ventricle.",
        "Hemorrhage within the ventricles.",
        "Intraventricular extension of hemorrhage is noted.",
        "{degree} hemorrhage in the ventricular system.",
    ),
    "infarct": (
        "Acute infarct in the {side} {region}.",
        "There is a {degree} area of hypoattenuation with loss of gray-white differentiation in the {side} {region}, consistent with infarction.",
        "Evolving {side} {region} infarct.",
        "{degree} cytotoxic edema in the {side} {region}, compatible with acute ischemic infarction.",
        "Territorial cerebral infarction involving the {side} {region}.",
        "Hypodensity of the {side} {region} suggestive of recent ischemic stroke.",
        "Loss of the gray-white interface in the {side} {region}, representing an acute cerebral infarct.",
    ),
    "tumour": (
        "There is a {size} mm intra-axial mass in the {side} {region} with vasogenic edema.",
        "{side} {region} mass lesion with {degree} surrounding edema, concerning for neoplasm.",
        "Mass with finger-like white matter edema in the {side} {region}.",
    ),
    "hydrocephalus": (
        "{degree} hydrocephalus.",
        "The ventricles are enlarged out of proportion to the sulci, consistent with hydrocephalus.",
        "There is {degree} ventriculomegaly with dilated temporal horns, compatible with hydrocephalus.",
        "Findings of {degree} hydrocephalus with transependymal edema.",
        "Dilated ventricular system indicating hydrocephalus.",
        "Enlarged ventricles with effaced sulci, in keeping with obstructive hydrocephalus.",
    ),
    "fracture": (
        "{side} {region} calvarial fracture.",
        "There is a {degree} linear fracture of the {side} {region} bone.",
        "Nondepressed skull fracture through the {side} {region} calvarium.",
        "Linear lucency traversing the {side} {region} bone, consistent with skull fracture.",
        "Acute fracture of the {side} {region} calvarium.",
    ),
    "midline shift": (
        "There is {shift} mm of {side} to {other} midline shift.",
        "{shift} mm midline shift to the {other}.",
        "Shift of midline structures to the {other} by {shift} mm.",
        "The septum pellucidum is displaced {shift} mm toward the {other}, consistent with midline shift.",
        "Leftward or rightward midline shift is present, measuring {shift} mm.",
    ),
    "mass effect": (
        "There is {degree} mass effect.",
        "{degree} mass effect with effacement of the adjacent sulci.",
        "Associated mass effect on the ventricles.",
        "Local mass effect and sulcal effacement.",
        "Effacement of the ventricles and sulci from mass effect.",
        "Compression of the adjacent parenchyma, in keeping with mass effect.",
    ),
    "hemorrhage": (
        "Acute intracranial hemorrhage.",
        "Findings of intracranial hemorrhage as described.",
        "Positive for acute intracranial blood products.",
        "Intracranial hemorrhage is present.",
        "Critical result: acute intracranial hemorrhage.",
    ),
}

ABSENT: dict[str, tuple[str, ...]] = {
    "intracranial_hemorrhage": (
        "No acute intracranial hemorrhage.",
        "There is no intracranial hemorrhage.",
        "No evidence of acute intracranial blood products.",
        "Negative for intracranial hemorrhage.",
        "No hyperdense intracranial hemorrhage is seen.",
        "No intra- or extra-axial hemorrhage.",
    ),
    "intraparenchymal_hemorrhage": ("No intraparenchymal hemorrhage.", "No parenchymal hematoma."),
    "intraventricular_hemorrhage": ("No intraventricular hemorrhage.", "No intraventricular extension."),
    "subarachnoid_hemorrhage": ("No subarachnoid hemorrhage.", "No subarachnoid blood is seen."),
    "subdural_hemorrhage": ("No subdural hematoma.", "No subdural collection.", "No extra-axial collection."),
    "epidural_hemorrhage": ("No epidural hematoma.", "No evidence of epidural hemorrhage."),
    "mass_effect": ("No mass effect.", "There is no significant mass effect.", "No mass effect or edema."),
    "midline_shift": ("No midline shift.", "Midline structures are midline.", "There is no shift of midline structures."),
    "hydrocephalus": (
        "No hydrocephalus.",
        "The ventricles are normal in size and configuration.",
        "Ventricles and sulci are within normal limits for age.",
    ),
    "cerebral_infarction": (
        "No acute infarct.",
        "No CT evidence of acute territorial infarction.",
        "Gray-white differentiation is preserved.",
    ),
    "skull_fracture": ("No calvarial fracture.", "The calvarium is intact.", "No acute skull fracture.", "Osseous structures are unremarkable."),
}  # fmt: skip

ABSENT_CHANCE = 0.34
"""How often a report denies a finding that is absent (twice as often where there is no haemorrhage at all)."""

NORMAL = (
    "No acute intracranial abnormality.",
    "Unremarkable CT of the head.",
    "Normal head CT.",
    "No acute intracranial process.",
)

HELD_OUT: dict[str, tuple[str, ...]] = {
    "intracranial_hemorrhage": ("fresh bleeding inside the skull", "bleed within the cranial vault", "hemorrhagic intracranial lesion"),
    "intraparenchymal_hemorrhage": ("bleeding into the brain tissue", "hemorrhage of the brain parenchyma", "intracerebral clot"),
    "intraventricular_hemorrhage": ("blood in the lateral ventricles", "ventricular bleeding", "hematocephalus with blood in the ventricles"),
    "subarachnoid_hemorrhage": ("blood in the subarachnoid space", "hemorrhage in the basal cisterns and sulci", "SAH, subarachnoid bleeding"),
    "subdural_hemorrhage": ("bleeding in the subdural space", "crescent-shaped subdural clot", "SDH, subdural bleed"),
    "epidural_hemorrhage": ("bleeding in the epidural space", "lenticular epidural clot", "extradural bleed"),
    "mass_effect": ("compression of brain structures by mass effect", "space-occupying effect with effaced sulci", "mass effect on the brain"),
    "midline_shift": ("displacement of the midline", "shift across the midline", "deviation of the septum pellucidum from midline"),
    "hydrocephalus": ("hydrocephalic dilatation of the ventricles", "dilated ventricles", "ventricular enlargement due to hydrocephalus"),
    "cerebral_infarction": ("ischemic stroke", "infarcted brain with loss of gray-white differentiation", "ischemic infarct of the brain"),
    "skull_fracture": ("broken skull", "fracture line in the calvarium", "cranial bone fracture"),
}  # fmt: skip
"""Ways to name each finding that no training report holds."""

TECHNIQUE = (
    "Axial CT images of the head were obtained without intravenous contrast.",
    "CT head without contrast.",
    "Noncontrast multidetector CT of the head was performed.",
)
CONTRAST = ("CT of the head following intravenous contrast administration.", "Contrast-enhanced CT head.")
COMPARISON = (
    "Comparison: none.", "No prior studies are available for comparison.", "Comparison is made with the prior examination.",
    "Clinical history: fall.", "Clinical history: headache.", "Indication: altered mental status.",
)  # fmt: skip
ASIDE: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("sinus_disease", 0.3, (
        "Mucosal thickening and fluid in the paranasal sinuses.", "Paranasal sinus disease.", "Opacification of the maxillary sinuses.")),
    ("atrophy", 0.65, (
        "Age-related cerebral volume loss.", "Generalized parenchymal atrophy with prominent sulci.", "Diffuse cerebral atrophy.")),
    ("small_vessel", 0.5, (
        "Periventricular white matter hypodensities, likely chronic small vessel ischemic change.", "Chronic microvascular changes.")),
    ("calcified_falx", 0.4, ("Falx calcification, benign.", "Dural calcifications along the falx.")),
    ("calcified_ganglia", 0.3, ("Physiologic basal ganglia calcifications.", "Symmetric calcification of the globi pallidi.")),
    ("calcified_plexus", 0.6, ("Choroid plexus calcifications.", "Physiologic pineal and choroid calcification.")),
    ("pneumatisation", 0.55, ("Mastoid air cells are clear.", "The mastoids are well aerated.")),
)  # fmt: skip
"""What else there is to say: a head's parameter, its limit, and sentences."""
SCALP = (
    "{side} {region} scalp hematoma.",
    "Soft tissue swelling over the {side} {region} scalp.",
    "Extracranial {side} {region} soft tissue hematoma.",
)
DEGREES = (("Trace", "Minimal", "Subtle", "Small"), ("Small", "Mild", "Moderate"), ("Moderate", "Large", "Extensive", "Marked"))


def _fill(rng: np.random.Generator, sentences: tuple[str, ...], conspicuity: float, **words: object) -> str:
    """One of the sentences with its words, as a sentence: a capital first, lower case degrees inside."""
    degree = str(rng.choice(DEGREES[min(2, int(3 * conspicuity))])).lower()
    text = str(rng.choice(sentences)).format(degree=degree, **words)
    text = text.replace("the both lateral ventricle", "both lateral ventricles").replace(" a extensive", " an extensive")
    return text[0].upper() + text[1:]


def _lesion_sentence(rng: np.random.Generator, lesion: Lesion) -> str:
    size = round(lesion.thickness) if lesion.thickness else round(2 * float(np.mean(lesion.radii)))
    region = lesion.region
    if lesion.kind == "subarachnoid" and lesion.variant == "sulci":
        region = f"{lesion.side} {lesion.region} sulci"
    sentences = SCALP if lesion.kind == "scalp" else PRESENT[f"{lesion.kind} {lesion.variant}" if lesion.kind == "subdural" else lesion.kind]
    return _fill(rng, sentences, lesion.conspicuity, side=lesion.side, region=region, size=size)


def _present(exam: Examination, rng: np.random.Generator) -> list[str]:
    found = exam.findings
    visible = [
        lesion for lesion, volume in zip(exam.lesions, exam.truth.volumes_ml, strict=True)
        if volume >= 0.05 or lesion.kind in ("scalp", "tumour")
    ]  # fmt: skip
    sentences = [_lesion_sentence(rng, lesion) for lesion in visible]
    if "midline_shift" in found:
        leftward = exam.truth.shift_mm > 0
        side, other = ("right", "left") if leftward else ("left", "right")
        texts = tuple(t.replace("Leftward or rightward", f"{other.capitalize()}ward") for t in PRESENT["midline shift"])
        sentences.append(_fill(rng, texts, found["midline_shift"], side=side, other=other, shift=round(abs(exam.truth.shift_mm))))
    if "mass_effect" in found:
        sentences.append(_fill(rng, PRESENT["mass effect"], found["mass_effect"]))
    if "intracranial_hemorrhage" in found and rng.random() < 0.5:
        sentences.append(_fill(rng, PRESENT["hemorrhage"], 1.0))
    return sentences


def _absent(exam: Examination, rng: np.random.Generator) -> list[str]:
    found = exam.findings
    sentences = []
    for label, texts in ABSENT.items():
        chance = ABSENT_CHANCE * (2.4 if label == "intracranial_hemorrhage" else 1)
        if label not in found and rng.random() < chance:
            texts = tuple(t for t in texts if not (t == "No extra-axial collection." and "epidural_hemorrhage" in found))
            texts = tuple(t for t in texts if "edema" not in t or not exam.lesions)
            sentences.append(str(rng.choice(texts)))
    return sentences


def write(exam: Examination, rng: np.random.Generator) -> tuple[str, ...]:
    """The report of an examination: technique, findings in any order, asides, negations, impression."""
    head = exam.head
    start = [str(rng.choice(CONTRAST if head.contrast else TECHNIQUE))] if rng.random() < 0.6 else []
    if rng.random() < 0.4:
        start.append(str(rng.choice(COMPARISON)))
    body = _present(exam, rng) + _absent(exam, rng)
    for parameter, limit, texts in ASIDE:
        if getattr(head, parameter) > limit and rng.random() < 0.4:
            body.append(str(rng.choice(texts)))
    body = [body[i] for i in rng.permutation(len(body))]
    harmless = all(lesion.kind == "scalp" for lesion in exam.lesions)
    if harmless and (rng.random() < 0.7 or not body):
        body.append(str(rng.choice(NORMAL)))
    return tuple(start + body)
