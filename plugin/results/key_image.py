"""Key images: for viewers without structured reports, a Secondary Capture of the slice with what was found on it.

Finding, score and notice stand above and below the slice, and the letters of the patient's sides beside it, so that
nothing of it is hidden; a ring marks where the model looked.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset

from hlip_core.frames import frames_of
from hlip_core.pixels import values
from hlip_core.windows import WINDOWS, Window, display
from plugin.results.codes import code
from plugin.results.findings_report import label
from plugin.results.identity import KEY_IMAGE, STATUS_NOTICE, fit, new_object
from plugin.results.orientation import edges
from plugin.results.report import KeySlice, StudyReport

if TYPE_CHECKING:
    from hlip_core.assessment import FindingScore

MOST_KEY_IMAGES = 3
SMALLEST_SIDE = 512
MOST_STRETCHED = 4.0
"""Pixels that are longer than this for their width are not drawn so: such a PixelSpacing cannot be meant."""
MARGIN = 34
BANNER = "AI, NOT FOR DIAGNOSIS"
RED, YELLOW, WHITE, BLACK, DARK = (160, 0, 0), (255, 220, 0), (255, 255, 255), (0, 0, 0), (24, 24, 24)
FONT_SIZES = (20, 18, 16, 14, 12, 10, 9, 8)
AIR_HU = -1024.0

WINDOW_OF_FINDING = {"skull_fracture": "bone", "subdural_hemorrhage": "blood", "epidural_hemorrhage": "blood"}
"""The window of `hlip_core.windows` in which a finding of a CT is shown, where it is not the brain window."""

LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")

BODY_PARTS = {"head": "HEAD", "chest": "CHEST"}
"""BodyPartExamined (PS3.16 Annex L) by the region of the preprocessing specification."""


def key_findings(report: StudyReport) -> list["FindingScore"]:
    """The findings that deserve a key image: the highest scores of those positive and located."""

    def shown(score: "FindingScore") -> float:
        return score.score if score.probability is None else score.probability

    return sorted(report.located, key=shown, reverse=True)[:MOST_KEY_IMAGES]


def key_slice(image: Dataset, score: "FindingScore", contours: tuple[np.ndarray, ...] = ()) -> KeySlice:
    """The slice of a located finding from its source image, in the window that fits the finding.

    Raises Refused where the image cannot be decoded, and ValueError where the finding is not located.
    """
    if score.location is None:
        raise ValueError(f"{score.finding.label} is not located")
    number = score.location.source.frame_number
    frame = next(frame for frame in frames_of([image], image.Modality) if frame.number == number)
    air = AIR_HU if image.Modality == "CT" else -math.inf
    slice_values = values(image, frame, air=air, modality=image.Modality)
    window = _window(score, slice_values, image.Modality)
    grey = display(slice_values, center=window.center, width=window.width)
    lossy = Dataset()
    for keyword in LOSSY:
        if keyword in image:
            lossy[keyword] = image[keyword]
    return KeySlice(
        label=score.finding.label,
        grey=grey,
        orientation=(*frame.across, *frame.down),
        spacing=frame.spacing,
        contours=contours,
        lossy=lossy,
    )


def _window(score: "FindingScore", slice_values: np.ndarray, modality: str) -> Window:
    """A named window in a CT; in other modalities all but the extremes of the slice, where it is not padding."""
    if modality == "CT":
        return WINDOWS[WINDOW_OF_FINDING.get(score.finding.label, "brain")]
    seen = slice_values[np.isfinite(slice_values)]
    low, high = np.percentile(seen, (0.5, 99.5)) if seen.size else (0.0, 1.0)
    return Window(float(low), float(max(high, low + 1)))


def key_images(report: StudyReport) -> list[Dataset]:
    """One RGB Secondary Capture for each key slice of the report, all in one series."""
    scores = {score.finding.label: score for score in report.located}
    return [
        _key_image(report, key, scores[key.label], number)
        for number, key in enumerate(report.key_slices[:MOST_KEY_IMAGES], start=1)
    ]


def _key_image(report: StudyReport, key: KeySlice, score: "FindingScore", number: int) -> Dataset:
    """PS3.3 A.8.1: SC Equipment, General Image, Image Pixel and SC Image Modules."""
    assert score.location is not None
    result = new_object(report, KEY_IMAGE, part=key.label, instance_number=number)
    result.ConversionType = "WSD"
    result.BodyPartExamined = BODY_PARTS[report.bundle.preprocessing.region]
    result.PatientOrientation = _patient_orientation(key)
    result.ImageType = ["DERIVED", "SECONDARY"]
    result.DerivationDescription = "Windowed slice with an AI finding drawn on it"
    result.ImageComments = fit(f"{BANNER}. {label(report, score)}", report.source)
    result.BurnedInAnnotation = "NO"
    result.LossyImageCompression = "00"
    result.update(key.lossy)
    result.SourceImageSequence = [_source_image(score)]
    _set_pixels(result, draw(report, key, score))
    return result


def _patient_orientation(key: KeySlice) -> list[str] | str:
    """Along the rows, then down the columns; empty where it is not known (PS3.3 C.7.6.1.1.1)."""
    if key.orientation is None:
        return ""
    beyond = edges(key.orientation)
    return [beyond["right"], beyond["bottom"]]


def _source_image(score: "FindingScore") -> Dataset:
    assert score.location is not None
    source = score.location.source
    item = Dataset()
    item.ReferencedSOPClassUID = source.sop_class_uid
    item.ReferencedSOPInstanceUID = source.sop_instance_uid
    if source.frame_number is not None:
        item.ReferencedFrameNumber = source.frame_number
    item.PurposeOfReferenceCodeSequence = [code("source-image")]
    return item


def _set_pixels(result: Dataset, pixels: np.ndarray) -> None:
    """RGB, 8 bits, colour by pixel (PS3.3 C.7.6.3); the pixels are padded to an even number of bytes."""
    result.SamplesPerPixel = 3
    result.PhotometricInterpretation = "RGB"
    result.PlanarConfiguration = 0
    result.Rows, result.Columns = pixels.shape[:2]
    result.BitsAllocated = result.BitsStored = 8
    result.HighBit = 7
    result.PixelRepresentation = 0
    data = pixels.tobytes()
    result.PixelData = data + b"\0" * (len(data) % 2)
    result["PixelData"].VR = "OB"


# ---- drawing -----------------------------------------------------------------------------------------------


def draw(report: StudyReport, key: KeySlice, score: "FindingScore") -> np.ndarray:
    """uint8 [rows, columns, 3]: banner, slice with contours, ring and sides, finding and score."""
    picture = _slice(key, score)
    if key.orientation is not None:
        picture = _lettered(picture, edges(key.orientation))

    status = STATUS_NOTICE.get(report.bundle.status)
    above = [_line(BANNER, picture.width, RED)] + ([_line(status, picture.width, RED)] if status else [])
    below = [
        _line(label(report, score), picture.width, DARK),
        _line(_caption(report, score), picture.width, DARK),
    ]
    parts = [*above, picture, *below]
    page = Image.new("RGB", (picture.width, sum(part.height for part in parts)), BLACK)
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return np.asarray(page)


def _slice(key: KeySlice, score: "FindingScore") -> Image.Image:
    """The slice as it lies in the source, with contours and ring."""
    rows, columns = key.grey.shape
    scales = _scales(key)
    size = round(columns * scales[1]), round(rows * scales[0])
    picture = Image.fromarray(key.grey).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    _mark(picture, key, score, scales)
    return picture


def _scales(key: KeySlice) -> tuple[float, float]:
    """Rows and columns of the picture for one of the source: as long as wide in mm, none of its sides too short."""
    rows, columns = key.grey.shape
    down, across = key.spacing or (1.0, 1.0)
    if max(down, across) > MOST_STRETCHED * min(down, across):
        down = across = 1.0
    down, across = down / min(down, across), across / min(down, across)
    scale = max(1, math.ceil(SMALLEST_SIDE / min(rows * down, columns * across)))
    return down * scale, across * scale


def _mark(picture: Image.Image, key: KeySlice, score: "FindingScore", scales: tuple[float, float]) -> None:
    """Contours and ring. The centre of the source's first pixel is half a pixel from its edges, whatever its scale."""
    assert score.location is not None
    pen = ImageDraw.Draw(picture)
    down, across = scales
    for contour in key.contours:
        points = [(float((column + 0.5) * across), float((row + 0.5) * down)) for row, column in contour]
        pen.line([*points, points[0]], fill=YELLOW, width=2)
    source = score.location.source
    x, y = (source.column + 0.5) * across, (source.row + 0.5) * down
    radius = max(12, round(0.03 * min(picture.size)))
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=YELLOW, width=2)


def _lettered(picture: Image.Image, beyond: Mapping[str, str]) -> Image.Image:
    """The slice in a margin with the letters of what lies beyond each edge."""
    width, height = picture.width + 2 * MARGIN, picture.height + 2 * MARGIN
    framed = Image.new("RGB", (width, height), BLACK)
    framed.paste(picture, (MARGIN, MARGIN))
    pen, font = ImageDraw.Draw(framed), ImageFont.load_default(FONT_SIZES[0])
    places = {
        "left": (MARGIN / 2, height / 2),
        "right": (width - MARGIN / 2, height / 2),
        "top": (width / 2, MARGIN / 2),
        "bottom": (width / 2, height - MARGIN / 2),
    }
    for edge, place in places.items():
        pen.text(place, beyond[edge], fill=WHITE, font=font, anchor="mm")
    return framed


def _caption(report: StudyReport, score: "FindingScore") -> str:
    assert score.location is not None
    series = report.series_of(score.location.series_instance_uid).series_number
    place = "" if series is None else f"series {series}. "
    return f"{place}Ring: where the model looked, not where a lesion is."


def _line(words: str, width: int, ground: tuple[int, int, int]) -> Image.Image:
    """One line of text in the largest font in which it fits."""
    for size in FONT_SIZES:
        font = ImageFont.load_default(size)
        if font.getlength(words) <= width - 16:
            break
    line = Image.new("RGB", (width, size + 10), ground)
    ImageDraw.Draw(line).text((8, 3), words, fill=WHITE, font=font)
    return line
