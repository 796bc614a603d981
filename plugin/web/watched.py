"""What people see and do, told to the audit trail: a line in a route, or a dependency of it."""

from collections.abc import Iterable

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from plugin.audit_message import MINOR_FAILURE, SUCCESS, Actor, StudyObjects
from plugin.bootstrap import Plugin
from plugin.index import people
from plugin.web.access import Person, access, viewer
from plugin.web.origin import address_of


def actor_of(request: Request, person: Person) -> Actor:
    """The person as the trail names them."""
    return Actor(person.name, address_of(request, access(request).settings))


def audit_view(request: Request, study_uid: str) -> None:
    """The person of the request (`viewer` found them) sees what names this study's patient. Blocks: for a thread."""
    found, actor = access(request), actor_of(request, request.state.person)
    if _tell(found.plugin, actor, study_uid):
        found.seen.mark(actor, study_uid)


def audit_act(request: Request, study_uid: str, act: str, *, succeeded: bool = True) -> None:
    """The person of the request does one of `plugin.audit_message.ACTS` with a study. Blocks: for a thread."""
    _tell(access(request).plugin, actor_of(request, request.state.person), study_uid, act=act, succeeded=succeeded)


def audit_list(request: Request, study_uids: Iterable[str]) -> None:
    """The same as `audit_view` for each study of a list, where the person has not seen it in a list just before."""
    found = access(request)
    if not found.plugin.audit.is_on:
        return
    actor = actor_of(request, request.state.person)
    for study_uid in found.seen.new(actor, study_uids):
        if _tell(found.plugin, actor, study_uid):
            found.seen.mark(actor, study_uid)


async def watched_viewer(request: Request) -> Person:
    """The dependency for a page of one study, whose path names it `study_uid`: `viewer`, and a line in the trail."""
    person = await viewer(request)
    await run_in_threadpool(audit_view, request, request.path_params["study_uid"])
    return person


def _tell(plugin: Plugin, actor: Actor, study_uid: str, *, act: str = "", succeeded: bool = True) -> bool:
    """Whether the trail has it."""
    if not plugin.audit.is_on:
        return False
    held = people.holdings(plugin.database, study_uid)
    if held is None:
        return False
    return plugin.audit.accessed(
        actor,
        StudyObjects(study_uid, held.instances),
        act=act,
        outcome=SUCCESS if succeeded else MINOR_FAILURE,
        patient_id=held.patient_id or None,
    )
