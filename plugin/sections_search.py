"""The section [search] of the settings: how the archive is searched."""

from typing import Literal

from pydantic import Field

from plugin.sections import Section


class SearchSettings(Section):
    engine: Literal["embedded", "pgvector"] = "embedded"
    exact_below: int = Field(100_000, ge=0)
    effort: int = Field(200, ge=10, le=1000)
    series_embeddings: bool = False
