#!/usr/bin/env python3
"""Push studies from an Orthanc to hlip as soon as they are stable there. A process beside Orthanc, not a part of it.

    python3 forward.py --orthanc http://127.0.0.1:8042 --modality hlip --state /var/lib/hlip-forward/state.json

It follows Orthanc's /changes. For each StableStudy it asks Orthanc to C-STORE the series of the wanted modalities
to the entry `hlip` of its DicomModalities, and takes the next change only when that succeeded: while hlip or Orthanc
is away it tries again, and where it was stopped it goes on. Structured Reports, ours among them, are not sent, and
a series goes out again only when something was added to it. Nothing but Python 3.9 is needed.

Orthanc waits its StableAge (60 s as it comes) before it calls a study stable: 10 is enough for most sites.
User and password for Orthanc's REST API come from the variables ORTHANC_USER and ORTHANC_PASSWORD.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

REMEMBERED = 50_000
"""Series of which it is known when they were sent last; the oldest are forgotten, and would be sent once more."""
BATCH = 100
LONGEST_WAIT = 60.0

log = logging.getLogger("hlip-forward")


class Gone(Exception):
    """The study or series was deleted meanwhile."""


class Orthanc:
    """Its REST API. Calls raise OSError where it does not answer, or answers with an error."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout_seconds
        user, password = os.environ.get("ORTHANC_USER", ""), os.environ.get("ORTHANC_PASSWORD", "")
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}"} if user else {}

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Raises Gone for 404."""
        data = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, "Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise Gone(path) from None
            raise


class State:
    """How far the changes were followed, and what was sent: a file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.since: int | None = kept.get("since")
        self.sent: dict[str, str] = kept.get("sent", {})

    def save(self) -> None:
        for series in list(self.sent)[: max(0, len(self.sent) - REMEMBERED)]:
            del self.sent[series]
        part = self._path.with_name(self._path.name + ".part")
        with part.open("w") as file:
            json.dump({"since": self.since, "sent": self.sent}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path)


class Forwarder:
    """Args: `modality` is hlip's name in Orthanc's DicomModalities; `wanted` are values of (0008,0060)."""

    def __init__(self, orthanc: Orthanc, state: State, *, modality: str, wanted: list[str], push_seconds: int) -> None:
        self._orthanc = orthanc
        self._state = state
        self._modality = modality
        self._wanted = set(wanted)
        self._push_seconds = push_seconds

    def start(self, *, from_beginning: bool) -> None:
        """Where no state is kept, begin with what comes from now on, or with all that Orthanc holds."""
        if self._state.since is None:
            self._state.since = 0 if from_beginning else self._orthanc.call("/changes?last")["Last"]
            self._state.save()

    def step(self) -> bool:
        """Follow the next changes; whether there are more. Raises OSError where one could not be followed."""
        page = self._orthanc.call(f"/changes?since={self._state.since}&limit={BATCH}")
        for change in page["Changes"]:
            if change["ChangeType"] == "StableStudy":
                try:
                    self._push(change["ID"])
                except Gone:
                    log.info("a study is gone before it was sent")
            self._state.since = change["Seq"]
        if page["Changes"]:
            self._state.save()
        return not page["Done"]

    def _push(self, study: str) -> None:
        """Send what is new of a study, over one association, so that hlip sees it as one."""
        new = {}
        for series in self._orthanc.call(f"/studies/{study}/series"):
            if series["MainDicomTags"].get("Modality") in self._wanted:
                stamp = f"{series['LastUpdate']} {len(series['Instances'])}"
                if self._state.sent.get(series["ID"]) != stamp:
                    new[series["ID"]] = stamp
        if not new:
            return
        body = {"Resources": list(new), "Synchronous": True, "Timeout": self._push_seconds}
        self._orthanc.call(f"/modalities/{self._modality}/store", body)
        for series_id, stamp in new.items():
            self._state.sent.pop(series_id, None)  # so that the latest are the last
            self._state.sent[series_id] = stamp
        self._state.save()
        log.info("sent %d series of study %s", len(new), study)

    def run(self, stop: threading.Event, *, poll_seconds: float, from_beginning: bool) -> None:
        """Until stopped; failures are tried again with growing waits."""
        wait = 0.0
        while not stop.wait(wait):
            try:
                self.start(from_beginning=from_beginning)
                wait = 0.0 if self.step() else poll_seconds
            except Gone as error:
                log.error("Orthanc knows no %s: is the entry in its DicomModalities?", error)
                wait = LONGEST_WAIT
            except (OSError, ValueError) as error:
                wait = min(LONGEST_WAIT, max(poll_seconds, 2 * wait))
                log.warning("not now (%s), again in %.0f s", error, wait)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orthanc", default="http://127.0.0.1:8042", help="its REST API")
    parser.add_argument("--modality", default="hlip", help="hlip's name in Orthanc's DicomModalities")
    parser.add_argument("--state", type=Path, default=Path("hlip-forward.json"), help="where it keeps how far it is")
    parser.add_argument("--modalities", nargs="+", default=["CT"], metavar="CT", help="what to send (0008,0060)")
    parser.add_argument("--poll-seconds", type=float, default=1.0, help="how often it asks for changes")
    parser.add_argument("--push-seconds", type=int, default=600, help="how long sending a study may take")
    parser.add_argument("--from-beginning", action="store_true", help="without a state: send all that is there too")
    return parser.parse_args()


def main() -> int:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # by a thread: a handler may interrupt a wait for this event
        signal.signal(number, lambda *_: threading.Thread(target=stop.set).start())
    forwarder = Forwarder(
        Orthanc(options.orthanc, timeout_seconds=options.push_seconds + 30),
        State(options.state),
        modality=options.modality,
        wanted=options.modalities,
        push_seconds=options.push_seconds,
    )
    forwarder.run(stop, poll_seconds=options.poll_seconds, from_beginning=options.from_beginning)
    return 0


if __name__ == "__main__":
    sys.exit(main())
