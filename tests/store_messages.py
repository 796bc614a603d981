"""A small CT image as a C-STORE message, whole and in fragments, and what a spool has kept of it."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from associations import P_DATA, RawPeer, pdu, pdv, store_rq
from plugin.spool import Spool, dataset_digest, digest_by_name

SOP_INSTANCE_UID = "1.2.4.1"


def encoded(syntax: str = ExplicitVRLittleEndian, *, pixels: int = 64, **elements: object) -> bytes:
    """A small CT image's data set as it goes over the wire."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, SOP_INSTANCE_UID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.1", "1.2.2"
    dataset.PatientName, dataset.Modality, dataset.SeriesNumber = "Phantom", "CT", 2
    dataset.ReferencedImageSequence = [Dataset()]
    dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.9"
    dataset.PixelData = bytes(range(256)) * (pixels // 256) + bytes(pixels % 256)
    dataset["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    target = DicomBytesIO()
    target.is_implicit_VR, target.is_little_endian = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    write_dataset(target, dataset)
    content = target.getvalue()
    if syntax == DeflatedExplicitVRLittleEndian:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        content = deflater.compress(content) + deflater.flush()
        content += b"\0" * (len(content) % 2)
    return content


STORE = store_rq(CTImageStorage, SOP_INSTANCE_UID)
DATA_SET = encoded()
MESSAGE = pdu(P_DATA, pdv(1, STORE, command=True, last=True)) + pdu(P_DATA, pdv(1, DATA_SET, last=True))


def fragmented(context_id: int, content: bytes, *, command: bool, size: int) -> list[bytes]:
    return [
        pdv(context_id, content[at : at + size], command=command, last=at + size >= len(content))
        for at in range(0, len(content), size)
    ]


@contextmanager
def associated(port: int, spool: Spool) -> Iterator[RawPeer]:
    """An association for CT images, with an empty spool."""
    for path in spool.incoming.iterdir():
        path.unlink(missing_ok=True)
    with RawPeer(port) as raw:
        raw.associate()
        yield raw


def kept(spool: Spool) -> list[bytes]:
    """What was acknowledged, oldest first, each named by its digest; nothing half-written lies beside it, but for the
    empty file of what comes next in an open association.
    """
    paths = spool.arrivals(10_000)
    for path in set(spool.incoming.iterdir()) - set(paths):
        with suppress(FileNotFoundError):
            assert path.stat().st_size == 0
    assert [digest_by_name(path) for path in paths] == [dataset_digest(path) for path in paths]
    return [path.read_bytes() for path in paths]


def data_set_of(part10: bytes) -> bytes:
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


def stored(peer: RawPeer, spool: Spool, stream: bytes) -> bytes:
    peer.send(stream)
    assert peer.status() == 0x0000
    return data_set_of(kept(spool)[-1])
