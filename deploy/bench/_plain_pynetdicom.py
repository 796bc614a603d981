"""Plain pynetdicom, as its documentation suggests for speed: the handler writes the data set as it came. No fsync.

python deploy/bench/_plain_pynetdicom.py PORT FOLDER
"""

import sys
import uuid
from pathlib import Path

from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.events import Event


def main() -> None:
    port, folder = int(sys.argv[1]), Path(sys.argv[2])

    def keep(event: Event) -> int:
        (folder / f"{uuid.uuid4().hex}.dcm").write_bytes(event.encoded_dataset())
        return 0x0000

    ae = AE(ae_title="PLAIN")
    ae.supported_contexts = AllStoragePresentationContexts
    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, keep)])


if __name__ == "__main__":
    main()
