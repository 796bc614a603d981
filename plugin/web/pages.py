"""What all pages share: the templates, which escape every value, and what stands at the top of each page."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hlip_core.findings import FindingsTable
from plugin.bootstrap import bundle_folder
from plugin.web import words
from plugin.web.access import Person, csrf_token

if TYPE_CHECKING:
    from plugin.bootstrap import Plugin

HERE = Path(__file__).parent
STATIC = HERE / "static"
FINDING_NAMES = {finding.label: finding.name for finding in FindingsTable.from_toml().findings}
"""The findings to choose from, by label: of the table that comes along, since no bundle is loaded for it."""

templates = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
templates.filters.update(words.FILTERS)


def plugin_of(request: Request) -> "Plugin":
    """The parts that the application was put together from."""
    return request.app.state.plugin


@dataclass(frozen=True)
class ModelLine:
    """Which model speaks, and what a reader has to know before any score."""

    name: str
    status: str

    @property
    def headline(self) -> str:
        return {
            "untrained": "UNTRAINED MODEL.",
            "phantom": "MODEL TRAINED ON PHANTOMS.",
        }.get(self.status, "MODEL UNKNOWN.")

    @property
    def sentence(self) -> str:
        return {
            "untrained": "Its weights are random numbers: scores and places mean nothing.",
            "phantom": "It has never seen a patient: scores and places mean nothing for one.",
        }.get(self.status, "Its bundle cannot be read on this host, so nothing is known of its training.")


def model_line(bundle: str) -> ModelLine:
    """Name and training of the bundle in the settings, without loading it. `bundle` is the setting."""
    if bundle == "untrained":
        return ModelLine(bundle, bundle)
    try:
        config = json.loads((bundle_folder(bundle) / "config.json").read_bytes())
        return ModelLine(str(config["name"]), str(config["status"]))
    except (OSError, ValueError, LookupError, TypeError):
        return ModelLine(Path(bundle).name, "unknown")


def page(request: Request, name: str, *, section: str = "", status: int = 200, **context: Any) -> HTMLResponse:
    """A template as an answer.

    `section` is the name in the navigation; `person` and `csrf` come from the request, where sign-in puts them.
    """
    person: Person | None = getattr(request.state, "person", None)
    shared = {
        "section": section,
        "person": person,
        "csrf": csrf_token(request) if person else "",
        "model": model_line(plugin_of(request).settings.model.bundle),
    }
    return HTMLResponse(templates.get_template(name).render(**shared, **context), status)
