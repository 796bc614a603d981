"""One series, from its files to the prepared scan and the header that are kept of it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from hlip_core.errors import Refused
from hlip_core.headers import MALFORMED, lenient
from hlip_core.preprocessing import Preprocessing
from hlip_core.reasons import Reason
from hlip_core.scope import screen
from hlip_core.volume import PreparedScan, open_series, prepare
from plugin.routing import route
from plugin.settings import RoutingRule
from plugin.spool import write_durably

HEADER_GROUPS = frozenset({0x0002, 0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040})


@dataclass(frozen=True, kw_only=True)
class Job:
    """The files of one series, how to prepare it, and where to keep what comes of it."""

    paths: Sequence[Path]
    spec: Preprocessing
    rules: Sequence[RoutingRule]
    prepared_path: Path
    header_path: Path


def prepare_series(job: Job) -> PreparedScan:
    """Prepare one series and keep the scan, and the header that results will copy the patient and study from.

    Raises:
        Refused: with the reason why this series is not analysed.
        OSError: the disk failed, not the series.
    """
    try:
        with lenient():
            datasets = open_series(job.paths)
            keep_header(datasets[0], job.header_path)
            screen(datasets, job.spec)
            if route(datasets[0], job.rules) is None:
                raise Refused(Reason.NOT_ROUTED)
            scan = prepare(datasets, job.spec)
        scan.save(job.prepared_path)
        return scan
    except MALFORMED as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the header's
            raise
        raise Refused(Reason.HEADER, type(error).__name__) from error


def keep_header(dataset: Dataset, path: Path) -> None:
    """Write a header without pixels, private elements and functional groups, durably; a broken one is not kept.

    Raises OSError: the disk failed, not the header.
    """
    header = Dataset()
    for element in dataset.elements():
        if element.tag.group in HEADER_GROUPS:
            header[element.tag] = element
    implicit, little_endian = dataset.original_encoding
    header.set_original_encoding(implicit, little_endian, dataset.original_character_set)
    header.file_meta = dataset.file_meta
    encoded = io.BytesIO()
    try:
        header.save_as(encoded, enforce_file_format=True)
    except MALFORMED:
        path.unlink(missing_ok=True)
    else:
        write_durably(path, encoded.getvalue())
