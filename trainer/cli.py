"""`hlip-train`: makes phantoms, gathers cohorts, pre-trains, evaluates, bundles. Each command has its own module."""

from __future__ import annotations

import typer

from trainer.phantom.command import phantom

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train an HLIP encoder on the studies and reports of an archive. Research software, not a medical device.",
)
app.command()(phantom)


@app.callback()
def _commands() -> None:
    """Keeps `phantom` a subcommand even while it is the only one."""


def main() -> None:
    """Entry point of `hlip-train`."""
    app()


if __name__ == "__main__":
    main()
