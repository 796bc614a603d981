"""The command `hlip`."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from hlip_core.errors import HlipError
from plugin import cli_model, cli_search, cli_user
from plugin.bootstrap import Plugin
from plugin.console import Config, console, errors, plugin_by, plugin_with_index
from plugin.lifecycle import WORK_QUEUES, Rejection

app = typer.Typer(
    name="hlip",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="""An AI result for every head CT, in the PACS, minutes after the scan.

**Research software, not a medical device.**

Start with `hlip serve`: it listens for C-STORE on 127.0.0.1:11112 (AE title HLIP), analyses each head CT that
settles, and writes DICOM Structured Reports. Or try `hlip analyze FOLDER --out RESULTS` without any server.

Settings come from a TOML file (`--config hlip.toml`; every setting is explained in deploy/hlip.toml), and each can
be overridden as a variable `HLIP_SECTION__KEY`, such as `HLIP_LISTENER__PORT=4104`.""",
)
app.add_typer(cli_model.app, name="model")
app.add_typer(cli_search.app, name="archive")
app.add_typer(cli_user.app, name="user")


@app.command()
def serve(config: Config = None) -> None:
    """Run everything on this machine: listener, scheduler, workers and web server, one process each.

    Needs no database server and no broker. Ctrl-C or SIGTERM stops it; whatever was acknowledged is kept, and
    work that was under way is taken up at the next start.
    """
    from plugin import screens
    from plugin.roles import Supervisor

    plugin = plugin_by(config)
    screens.print_welcome(errors, plugin)
    Supervisor(plugin, config).run()


@app.command()
def listen(config: Config = None) -> None:
    """Run the DICOM listener alone: C-STORE and C-ECHO into the spool. Needs no database and no broker."""
    from plugin import roles

    roles.die_with_parent()
    roles.listen(plugin_by(config))


@app.command()
def web(config: Config = None) -> None:
    """Run the web server alone: the page, STOW-RS (POST /dicom-web/studies), /healthz, /readyz and /metrics.

    STOW-RS goes into the spool, and needs no database and no broker. On 127.0.0.1:8080 it serves this machine; for
    others set `web.host` and a `web.stow_token`, which senders show as `Authorization: Bearer TOKEN`.
    """
    from plugin import roles

    roles.die_with_parent()
    roles.web(plugin_by(config))


@app.command()
def schedule(config: Config = None) -> None:
    """Run the scheduler alone: indexes arrivals, settles series and studies, announces work.

    One scheduler a site. It brings the index to this version's schema when it starts.
    """
    from plugin import roles

    roles.die_with_parent()
    roles.schedule(plugin_by(config))


@app.command()
def work(
    queue: Annotated[
        list[str],
        typer.Option(help=f"What to work on: {', '.join(WORK_QUEUES)}. Give it again for several."),
    ] = list(WORK_QUEUES),  # noqa: B006 (typer copies it)
    config: Config = None,
) -> None:
    """Run a worker: prepare series (CPU), analyse studies (GPU where there is one), deliver results, send signals.

    As many as you like, on as many hosts as share the spool, the index and the broker; one `analyse` worker a GPU.
    """
    from plugin import roles

    if unknown := sorted(set(queue) - set(WORK_QUEUES)):
        raise typer.BadParameter(f"no queue {', '.join(unknown)}; there are {', '.join(WORK_QUEUES)}")
    roles.die_with_parent()
    roles.work(plugin_by(config), queue)


@app.command()
def analyze(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files or folders.", exists=True)],
    out: Annotated[Path, typer.Option(help="Where results go: a folder per study in it.")],
    config: Config = None,
) -> None:
    """Analyse a folder of DICOM: result objects and findings.json out, no server.

    The same steps and the same model as the served road; each run's objects have UIDs of their own. Exits with 1 when
    no study could be analysed, also where a summary says why.
    """
    from plugin import screens
    from plugin.folder import analyse_folder

    plugin = plugin_by(config)
    out.mkdir(parents=True, exist_ok=True)
    with screens.progress(errors) as progress:
        outcomes = list(analyse_folder(plugin, paths, out, device=plugin.device, progress=progress))
    for outcome in outcomes:
        screens.print_outcome(console, outcome)
    if not outcomes:
        errors.print("No DICOM instance found.")
    if not any(outcome.analysis is not None and outcome.analysis.assessment is not None for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def status(
    study: Annotated[list[str] | None, typer.Argument(help="StudyInstanceUIDs; all without.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    limit: Annotated[int, typer.Option(help="How many of the latest studies.", min=1)] = 20,
    watch: Annotated[bool, typer.Option(help="Keep showing it, until Ctrl-C.")] = False,
    config: Config = None,
) -> None:
    """Show what was received, what became of it, and what waits. Names no patient."""
    from rich.live import Live

    from plugin import screens

    plugin = plugin_with_index(config)

    def read() -> dict:
        return screens.read_status(plugin, study_uids=study or (), limit=limit)

    if as_json:
        print(json.dumps(read(), indent=2))
    elif watch:
        with Live(screens.status_page(read()), console=console, screen=False) as live:
            while True:
                time.sleep(1)
                live.update(screens.status_page(read()))
    else:
        console.print(screens.status_page(read()))


@app.command()
def retry(
    study: Annotated[str | None, typer.Argument(help="StudyInstanceUID. Without: all.")] = None,
    held: Annotated[
        bool,
        typer.Option(help="Also send results that were held back, if the settings now let them out."),
    ] = False,
    config: Config = None,
) -> None:
    """Take up again what was given up: crashed series, failed studies, deliveries and signals refused or waiting.

    With a StudyInstanceUID, that study is prepared and analysed anew; if it says the same as before, nothing new is
    sent.
    """
    from plugin.index import outcomes

    plugin = plugin_with_index(config)
    taken = outcomes.retry(plugin.database, study_instance_uid=study)
    console.print(
        f"{taken.series} series, {taken.studies} studies, {taken.deliveries} deliveries, {taken.signals} signals "
        "wait again."
    )
    if held:
        _let_out_held(plugin)


def _let_out_held(plugin: Plugin) -> None:
    """Results and signals, each where a setting of its own lets it. Exits with 1 where results stay held."""
    from plugin.index import outcomes, signals

    if receivers := [row.name for row in plugin.settings.signals if not plugin.holds_signals_to(row)]:
        console.print(f"{signals.let_out_held(plugin.database, receivers)} held signals wait to be sent.")
    if plugin.holds_results:
        errors.print(
            f"Held results stay: the model is {plugin.bundle.status}. To send them all the same, set "
            "delivery.send_results_of_untrained_or_phantom_models = true."
        )
        raise typer.Exit(1)
    console.print(f"{outcomes.let_out_held(plugin.database)} held results wait for delivery.")


@app.command()
def withdraw(
    study: Annotated[str, typer.Argument(help="StudyInstanceUID.")],
    reason: Annotated[Rejection, typer.Option(help="Why, as the note's title says it.")] = "quality",
    reissue: Annotated[
        bool, typer.Option(help="Analyse the study again: its next revision follows, with UIDs of its own.")
    ] = False,
    config: Config = None,
) -> None:
    """Withdraw the current results of a study: a rejection note (IHE IOCM) tells every destination that holds them.

    A destination whose `delete_withdrawn` is set also has them deleted. Without --reissue the study stays withdrawn
    until new images come. With --reissue, a study that is withdrawn already is analysed again.
    """
    from plugin import withdrawal

    plugin = plugin_with_index(config)
    if not (reissue and withdrawal.is_withdrawn(plugin, study)):
        done = withdrawal.withdraw(plugin, study, reason=reason)
        told = ", ".join(done.destinations) or "no destination, since none has received anything of it"
        console.print(f"Revision {done.revision} is withdrawn. The rejection note goes to {told}.")
        console.print(f"It lies in {done.note}", soft_wrap=True)
    if reissue:
        withdrawal.reissue(plugin, study)
        console.print("The study will be analysed again.")


@app.command()
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, only show what would go.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option(help="Days, in place of those of the settings. What they never remove is left alone.", min=0),
    ] = None,
    acknowledge: Annotated[
        list[str] | None,
        typer.Option(
            help="StudyInstanceUID of a study whose results will not be delivered (refused, held, sent nowhere, "
            "given up), and which may go by its age like the others. Again for several; removes nothing now."
        ),
    ] = None,
    find_orphans: Annotated[
        bool, typer.Option("--orphans", help="Only deal with what kills or a restored index left behind.")
    ] = False,
    config: Config = None,
) -> None:
    """Remove what the rules of retention let go: settings section [retention], days since anything happened.

    The scheduler does the same by itself, a study at a time. Never removed: what is not delivered, in progress,
    committed to a sender, or given up and not acknowledged; the last lines say how many and why.

    Try `hlip clean --dry-run --older-than 2` first. With --orphans, instances that the index does not know are
    indexed again; half-written files, prepared scans and results that it does not know go once they are a day old.
    """
    from plugin import cli_clean

    plugin = plugin_with_index(config)
    if acknowledge:
        cli_clean.acknowledge(plugin, acknowledge)
    elif find_orphans:
        cli_clean.clean_orphans(plugin, dry_run=dry_run)
    else:
        cli_clean.clean(plugin, older_than=older_than, dry_run=dry_run)


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="A Structured Report's file, or a StudyInstanceUID.")],
    as_html: Annotated[bool, typer.Option("--html", help="As a page of HTML, on standard output.")] = False,
    config: Config = None,
) -> None:
    """Show a Structured Report as a readable page: any file of ours or of others, or a study's current results."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    from plugin.results import readable

    paths = [Path(what)] if Path(what).is_file() else _current_reports(plugin_with_index(config), what)
    for path in paths:
        try:
            page = readable.page_of(dcmread(path))
        except InvalidDicomError:
            raise ValueError(f"{path.name} is no DICOM file") from None
        if as_html:
            print(readable.html(page))
        else:
            console.print(readable.terminal(page))


def _current_reports(plugin: Plugin, study_instance_uid: str) -> list[Path]:
    """Files of the study's current Structured Reports. Raises ValueError where there is none."""
    from plugin.index.overview import overview
    from plugin.results import KINDS

    reports = {kind.sop_class_uid for kind in KINDS if kind.modality == "SR"}
    for study in overview(plugin.database, study_uids=[study_instance_uid])["studies"]:
        for revision in study["revisions"]:
            if revision["current"]:
                results = revision["results"]
                if any(result["removed_at"] for result in results):
                    raise ValueError("the results of this study are no longer kept here (settings: [retention])")
                return [plugin.spool / result["path"] for result in results if result["sop_class_uid"] in reports]
    raise ValueError("neither a file nor the StudyInstanceUID of a study with results")


def _explain(error: Exception) -> str:
    if isinstance(error, ValidationError):
        lines = (f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        return "The settings are wrong:\n" + "\n".join(lines)
    return str(error)


def main(run: Callable[[], None] = app) -> None:
    """Entry point: errors that a user can mend are printed in a sentence or two, without a traceback."""
    try:
        run()
    except (ValidationError, HlipError, OSError, TimeoutError, ValueError) as error:
        errors.print(f"[red]hlip:[/red] {escape(_explain(error))}", highlight=False)
        sys.exit(2)
