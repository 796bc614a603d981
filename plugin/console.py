"""What the commands of `hlip` share: the terminal, the option that names the settings, the plugin by them."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from plugin.bootstrap import Plugin, configure, configure_libraries
from plugin.settings import load_settings

console = Console()
errors = Console(stderr=True)

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Settings file (TOML). Without one, defaults.", envvar="HLIP_CONFIG"),
]


def plugin_by(config: Path | None) -> Plugin:
    os.umask(0o077)  # what is written here names patients: it is for its owner only
    plugin = Plugin(load_settings(config))
    configure(plugin.settings.log)
    configure_libraries(plugin.settings.log)
    return plugin


def plugin_with_index(config: Path | None) -> Plugin:
    """Raises ValueError where nothing has made the index yet."""
    plugin = plugin_by(config)
    if not plugin.database.is_current():
        raise ValueError(
            f"there is no index of this version for the data folder {plugin.spool.folder}: start `hlip serve` "
            "first, or name the settings that it runs with (--config, HLIP_...)"
        )
    return plugin
