"""`hlip-train cohort`: studies and reports of an archive, a folder or a spool become a cohort to train from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hlip_core.errors import InputError
from hlip_core.preprocessing import PREPROCESSINGS
from trainer.manifest import SPLITS

from . import screen
from .run import Wishes, find, make
from .study import Unavailable

console = Console()
errors = Console(stderr=True)

FIRST, SECOND, THIRD, FOURTH = "Where studies are", "Reports and labels", "What is written", "How"


def cohort(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the cohort; made when missing.")],
    folder: Annotated[
        Path | None,
        typer.Option(help="A folder of DICOM files in any layout, or of phantoms.", exists=True, file_okay=False,
                     rich_help_panel=FIRST),
    ] = None,
    spool: Annotated[
        Path | None,
        typer.Option(help="The data folder of `hlip serve`: its spool is read.", exists=True, file_okay=False,
                     rich_help_panel=FIRST),
    ] = None,
    dicomweb: Annotated[
        str | None,
        typer.Option(help="URL of a DICOMweb archive (QIDO-RS and WADO-RS), http://pacs/dicom-web.",
                     rich_help_panel=FIRST),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(help="Only studies that match, as KEYWORD=VALUE (StudyDate=20240101-20241231); repeatable.",
                     rich_help_panel=FIRST),
    ] = None,
    user: Annotated[
        str, typer.Option(help="User of the archive.", envvar="HLIP_DICOMWEB_USER", rich_help_panel=FIRST)
    ] = "",
    password: Annotated[
        str,
        typer.Option(help="Password; better in the variable than here.", envvar="HLIP_DICOMWEB_PASSWORD",
                     rich_help_panel=FIRST),
    ] = "",
    token: Annotated[
        str, typer.Option(help="Bearer token, in place of both.", envvar="HLIP_DICOMWEB_TOKEN", rich_help_panel=FIRST)
    ] = "",
    reports: Annotated[
        list[Path] | None,
        typer.Option(help="CSV or JSONL with a column StudyInstanceUID or AccessionNumber, and `report`; repeatable.",
                     exists=True, dir_okay=False, rich_help_panel=SECOND),
    ] = None,
    hl7: Annotated[
        Path | None,
        typer.Option("--hl7", help="A folder (or file) of HL7 v2 ORU^R01 messages.", exists=True,
                     rich_help_panel=SECOND),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV or JSONL: StudyInstanceUID or AccessionNumber, and a column (1, 0) for each finding.",
                     exists=True, dir_okay=False, rich_help_panel=SECOND),
    ] = None,
    all_sections: Annotated[
        bool,
        typer.Option("--all-sections", help="Also keep history, technique, comparison and the like.",
                     rich_help_panel=SECOND),
    ] = False,
    validation: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the patients for validation.", rich_help_panel=THIRD)
    ] = 0.1,
    test: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the patients for the test.", rich_help_panel=THIRD)
    ] = 0.1,
    split: Annotated[
        str | None,
        typer.Option(help=f"All studies into one split: {', '.join(SPLITS)}.", rich_help_panel=THIRD),
    ] = None,
    headers: Annotated[
        bool,
        typer.Option("--headers", help="Also write a de-identified header of each series, as DICOM JSON.",
                     rich_help_panel=THIRD),
    ] = False,
    salt_file: Annotated[
        Path | None,
        typer.Option(help="Keep the secret that pseudonyms are made from here (made when missing), to extend the "
                     "cohort later. Whoever has it can recognise known patients.", dir_okay=False,
                     rich_help_panel=THIRD),
    ] = None,
    keep_identities: Annotated[
        bool,
        typer.Option("--keep-identities", help="Write UIDs, PatientID and reports as they are. For phantoms.",
                     rich_help_panel=THIRD),
    ] = False,
    preprocessing: Annotated[
        str, typer.Option(help=f"How series become scans: {', '.join(PREPROCESSINGS)}.", rich_help_panel=FOURTH)
    ] = "head-ct/1",
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-w", min=1, help="Processes; all cores if not set.", rich_help_panel=FOURTH),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be read and linked; write nothing.",
                     rich_help_panel=FOURTH),
    ] = False,
) -> None:  # fmt: skip
    """Make a cohort to pre-train from: prepared scans, sentences of their reports, and labels.

    Series become scans by the very function that serving uses; what is refused is listed with its reason in
    `refused.jsonl`. Reports come from tables, from HL7 messages, or from SR documents in the studies; phantoms bring
    their own. Patients, not studies, are split.

    **No identity is written** unless you ask for it: UIDs and patients get salted pseudonyms, names and numbers are
    removed from the reports. Voxels stay as they are, and a face can be rendered from them.

    Start it again after an interruption, with the same options: finished studies are kept.

    **Examples**

    `hlip-train cohort --folder phantoms --out cohort` - phantoms, with their sentences and labels

    `hlip-train cohort --dicomweb http://pacs:8042/dicom-web --match StudyDate=20240101- --reports ris.csv --out cohort`

    `hlip-train cohort --spool hlip-data --hl7 /var/spool/oru --salt-file ~/salt --out cohort` - may be extended later

    `hlip-train cohort --folder export --reports reports.jsonl --out cohort --dry-run` - how many are linked?
    """
    if preprocessing not in PREPROCESSINGS:
        raise typer.BadParameter(f"no such preprocessing: {preprocessing}. There are: {', '.join(PREPROCESSINGS)}")
    if split is not None and split not in SPLITS:
        raise typer.BadParameter(f"no such split: {split}. There are: {', '.join(SPLITS)}")
    if validation + test > 1:
        raise typer.BadParameter("--validation and --test together are more than 1")
    if salt_file is not None and out.resolve() in salt_file.resolve().parents:
        raise typer.BadParameter("--salt-file lies in the cohort's folder: whoever gets the cohort would get the salt")
    if sum(source is not None for source in (folder, spool, dicomweb)) != 1:
        raise typer.BadParameter("name one source: --folder, --spool or --dicomweb")
    wishes = Wishes(
        out=out, folder=folder, spool=spool, dicomweb=dicomweb or "", match=_match(match), user=user,
        password=password, token=token, reports=tuple(reports or ()), hl7=hl7, labels=labels,
        all_sections=all_sections, validation=validation, test=test, split=split,
        headers=headers, salt_file=salt_file, keep_identities=keep_identities,
        preprocessing=PREPROCESSINGS[preprocessing], workers=workers or os.cpu_count() or 1,
    )  # fmt: skip
    try:
        _run(wishes, dry_run=dry_run)
    except (InputError, Unavailable) as error:
        errors.print(f"[red]{error}[/]", highlight=False)
        raise typer.Exit(1) from error
    except OSError as error:
        errors.print(f"[red]The cohort cannot be written or a source not read: {error.strerror}.[/]", highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as stop:
        errors.print("Stopped. Start the same command again to go on.")
        raise typer.Exit(130) from stop


def _run(wishes: Wishes, *, dry_run: bool) -> None:
    with screen.progress(errors) as progress:
        found = find(wishes, progress)
        made = None if dry_run else make(wishes, found, progress)
    if made is None:
        console.print(screen.found(found, wishes))
        return
    console.print(screen.summary(made.facts))
    if made.facts["refused_series"]:
        console.print(screen.refused(made.facts))
    console.print(f"{len(made.rows)} studies in {wishes.out}")
    if made.is_open:
        errors.print("Some series could not be read this time: start the same command again to retry.")


def _match(pairs: list[str] | None) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs or ()]
    if wrong := [keyword for keyword, equals, value in split if not (keyword and equals and value)]:
        raise typer.BadParameter(f"--match {wrong[0]}: write KEYWORD=VALUE, such as StudyDate=20240101-20241231")
    return {keyword: value for keyword, _, value in split}
