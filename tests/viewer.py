"""A viewer that no one here wrote, in front of a real archive: OHIF before Orthanc, in headless Chromium.

OHIF is the built `dist` of its npm package with a configuration of ours; one small server gives it out and
passes DICOMweb on to Orthanc, so that all is one origin.
"""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from peers import Orthanc, needs, orthanc, wait_until

OHIF_VERSION = "3.13.2"
CACHE = Path(__file__).resolve().parents[1] / ".cache"
CHROMIUM = [
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]
CONFIGURATION = """window.config = {
  routerBasename: null, extensions: [], modes: [], showStudyList: true, maxNumberOfWebWorkers: 2,
  showWarningMessageForCrossOrigin: false, showCPUFallbackMessage: false, showErrorDetails: 'always',
  investigationalUseDialog: { option: 'never' }, defaultDataSourceName: 'orthanc',
  dataSources: [{ namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'orthanc',
    configuration: { friendlyName: 'Orthanc', name: 'orthanc', wadoUriRoot: '/wado', qidoRoot: '/dicom-web',
      wadoRoot: '/dicom-web', qidoSupportsIncludeField: false, supportsReject: false,
      imageRendering: 'wadors', thumbnailRendering: 'wadors', enableStudyLazyLoad: true,
      supportsFuzzyMatching: false, supportsWildcard: true, singlepart: 'bulkdata,video',
      omitQuotationForMultipartRequest: true,
      bulkDataURI: { enabled: true, relativeResolution: 'studies' } } }] };
"""
NO_TOUR = "localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour', 'segmentationTour']))"
CURRENT_IMAGE = """() => {
  const viewport = services.viewportGridService.getActiveViewportId();
  return services.cornerstoneViewportService.getCornerstoneViewport(viewport)?.getCurrentImageId?.() ?? '';
}"""
SEGMENTS = """() => services.segmentationService.getSegmentations()
  .flatMap(each => Object.values(each.segments ?? {}).map(segment => segment?.label ?? ''))"""
PATIENCE = 60
CRASH = "Something went wrong"


def ohif_dist() -> Path:
    """OHIF's built files: a folder given in HLIP_OHIF_DIST, or the npm package, fetched once into .cache."""
    given = os.environ.get("HLIP_OHIF_DIST")
    dist = Path(given) if given else CACHE / f"ohif-{OHIF_VERSION}" / "package" / "dist"
    if (dist / "index.html").is_file():
        return dist
    if given or shutil.which("npm") is None:
        pytest.skip(f"OHIF is not in {dist}, and npm, which could fetch it, is not installed")
    folder = dist.parents[1]
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"@ohif/app@{OHIF_VERSION}"]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"npm could not fetch @ohif/app@{OHIF_VERSION}")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    archive.unlink()
    return dist


class Handler(SimpleHTTPRequestHandler):
    """Static files with index.html for every other address, and a pass-through to Orthanc's DICOMweb."""

    def __init__(self, *arguments: Any, dist: Path, archive: int, **keywords: Any) -> None:
        self.archive = archive
        super().__init__(*arguments, directory=str(dist), **keywords)

    def do_GET(self) -> None:
        address = self.path.split("?")[0]
        if address.startswith(("/dicom-web", "/wado")):
            self._pass_on()
        elif address == "/app-config.js":
            self._send(200, "text/javascript", CONFIGURATION.encode())
        else:
            if not Path(self.translate_path(address)).is_file():
                self.path = "/index.html"
            super().do_GET()

    def _pass_on(self) -> None:
        host = self.headers["Host"]
        headers = {"Accept": self.headers.get("Accept", "*/*"), "Host": host}
        # Orthanc writes the addresses of bulk data from this header
        headers["Forwarded"] = f"by=viewer;for=127.0.0.1;host={host};proto=http"
        with closing(HTTPConnection("127.0.0.1", self.archive)) as connection:
            connection.request("GET", self.path, headers=headers)
            answer = connection.getresponse()
            self._send(answer.status, answer.getheader("Content-Type", ""), answer.read())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        # OHIF shares memory between its workers, which browsers allow only to isolated pages
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Silent."""


@dataclass
class Screen:
    """One study open in the viewer, and everything that went wrong in the page."""

    page: Any
    shots: Path
    errors: list[str] = field(default_factory=list)

    def text(self) -> str:
        return self.page.inner_text("body")

    def wait_for(self, text: str) -> None:
        wait_until(lambda: self._step() and text in self.text(), f"{text!r} on the page", PATIENCE)

    def wait_for_image(self, sop_instance_uid: str, frame_number: int = 1) -> None:
        """Wait until the active viewport shows that frame."""
        place = f"/instances/{sop_instance_uid}/frames/{frame_number}"
        wait_until(lambda: self._step() and self._image_id().endswith(place), place, PATIENCE)

    def _image_id(self) -> str:
        return self.page.evaluate(CURRENT_IMAGE)

    def wait_for_blue(self) -> None:
        """Wait until the middle of the viewport shows the colours of relevance, which a CT has not.

        A map is drawn only once its viewport is scrolled.
        """

        def scrolled() -> bool:
            self.assert_whole()
            self.page.keyboard.press("ArrowDown")
            self.page.wait_for_timeout(500)
            return self._num_blue() > 50

        wait_until(scrolled, "a coloured map", PATIENCE)

    def _num_blue(self) -> int:
        box = self.page.locator("canvas").first.bounding_box() or {"x": 0, "y": 0, "width": 0, "height": 0}
        middle = {
            "x": box["x"] + box["width"] / 5,
            "y": box["y"] + box["height"] / 5,
            "width": box["width"] * 3 / 5,
            "height": box["height"] * 3 / 5,
        }
        pixels = np.asarray(Image.open(BytesIO(self.page.screenshot(clip=middle))).convert("RGB"), np.int16)
        return int((pixels[..., 2] - pixels[..., 1] > 30).sum())

    def wait_for_segment(self, label: str) -> None:
        wait_until(lambda: self._step() and label in self.page.evaluate(SEGMENTS), f"segment {label!r}", PATIENCE)

    def _step(self) -> bool:
        self.page.wait_for_timeout(100)
        return True

    def open_series(self, description: str) -> None:
        thumbnail = self.page.locator('[data-cy^="study-browser-thumbnail"]').filter(has_text=description)
        thumbnail.last.dblclick(timeout=60_000)

    def list_rows(self) -> None:
        """Take over the measurements of the report that is open, and show their list."""
        self.page.get_by_text("Yes", exact=True).last.click(timeout=60_000)
        self.page.locator('[data-cy="trackedMeasurements-btn"]').click(timeout=60_000)
        self.page.locator('[data-cy="data-row"]').first.wait_for(timeout=60_000)

    def rows(self) -> list[str]:
        return self.page.locator('[data-cy="data-row"]').all_inner_texts()

    def click_row(self, number: int) -> None:
        self.page.locator('[data-cy="data-row"]').nth(number).click(timeout=60_000)

    def shoot(self, name: str) -> Path:
        path = self.shots / f"{name}.png"
        self.page.screenshot(path=str(path))
        path.with_suffix(".txt").write_text(self.text() + "\n" + "\n".join(self.errors))
        return path

    def assert_whole(self) -> None:
        """Neither a crash message nor an error of the page."""
        assert CRASH not in self.text()
        assert self.errors == []


@dataclass
class Viewer:
    """OHIF before an Orthanc."""

    archive: Orthanc
    base: str
    browser: Any
    shots: Path

    @contextmanager
    def study(self, study_instance_uid: str, *, mode: str = "viewer") -> Iterator[Screen]:
        context = self.browser.new_context(viewport={"width": 1600, "height": 900})
        page = context.new_page()
        screen = Screen(page, self.shots)
        page.on("pageerror", lambda error: screen.errors.append(str(error)[:400]))
        page.add_init_script(NO_TOUR)
        page.goto(f"{self.base}/{mode}?StudyInstanceUIDs={study_instance_uid}", timeout=120_000)
        page.wait_for_selector("canvas", timeout=120_000)
        try:
            yield screen
        finally:
            context.close()


@contextmanager
def running(folder: Path) -> Iterator[Viewer]:
    """Orthanc, the server and the browser, all ended afterwards; skipped where something is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = needs("chromium", "chromium")
    dist = ohif_dist()
    shots = Path(os.environ.get("HLIP_SCREENSHOTS", folder / "screenshots"))
    shots.mkdir(parents=True, exist_ok=True)
    with orthanc(folder) as archive, playwright.sync_playwright() as driver:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, dist=dist, archive=archive.http_port))
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        browser = driver.chromium.launch(executable_path=chromium, headless=True, args=CHROMIUM)
        try:
            yield Viewer(archive, f"http://127.0.0.1:{server.server_address[1]}", browser, shots)
        finally:
            browser.close()
            server.shutdown()
            server.server_close()
            thread.join()
