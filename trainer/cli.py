"""`hlip-train`: makes phantoms, gathers cohorts, pre-trains, evaluates, bundles. Each command has its own module."""

from __future__ import annotations

import typer

from trainer.bundling import bundle
from trainer.cohort.command import cohort
from trainer.evaluation.command import evaluate
from trainer.phantom.command import phantom
from trainer.pretrain import pretrain

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train an HLIP encoder on the studies and reports of an archive. Research software, not a medical device.",
)
app.command()(phantom)
app.command()(cohort)
app.command()(pretrain)
app.command()(bundle)
app.command()(evaluate)


def main() -> None:
    """Entry point of `hlip-train`."""
    app()


if __name__ == "__main__":
    main()
