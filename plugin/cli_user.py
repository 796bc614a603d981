"""The commands `hlip user ...`: who may sign in on the page."""

import getpass
import re
import socket
import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from plugin.bootstrap import Plugin
from plugin.console import Config, console, errors, plugin_with_index

Name = Annotated[str, typer.Argument(help="The name that they sign in with.")]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Who may sign in on the page, and what they may do there.

A *viewer* sees the worklist, studies and operations. An *operator* also withdraws, re-runs and retries. Without any
user (and without OIDC, settings section [oidc]) the page answers this machine alone, where everyone is an operator.

`hlip user add grace --role operator` asks for a password; in a script,
`printf %s "$PASSWORD" | hlip user add grace`.""",
)


class RoleName(StrEnum):
    """What a user may do."""

    VIEWER = "viewer"
    OPERATOR = "operator"


Role = Annotated[RoleName, typer.Option(help="viewer: may look. operator: may also withdraw, re-run, retry.")]


def _tell(plugin: Plugin, name: str, what: str) -> None:
    """The audit trail, of a change made at this machine by whoever is logged in here."""
    from plugin.audit_message import Actor

    plugin.audit.user_changed(Actor(getpass.getuser(), socket.gethostname()), name, what)


def _read_password(name: str) -> str:
    """From a prompt, twice, or from the first line of what is piped in. Raises ValueError where it is no good one."""
    from plugin.passwords import check_password

    if sys.stdin.isatty():
        password = typer.prompt(f"Password for {name}", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    check_password(password, name)
    return password


@app.command()
def add(name: Name, role: Role = RoleName.VIEWER, config: Config = None) -> None:
    """Add a user. The password is asked for, or read from standard input; never given on the command line.

    From the first user on, the page is for those who sign in, on this machine too.
    """
    from plugin.index import people
    from plugin.passwords import hash_password

    if not re.fullmatch(r"[\w.@-]{1,64}", name):
        raise ValueError("a name is up to 64 letters, digits and . @ - _")
    plugin = plugin_with_index(config)
    if any(user.name == name for user in people.users(plugin.database)):
        raise ValueError(f"there is a user {name} already: see `hlip user list`")
    password_hash = hash_password(_read_password(name))
    people.add_user(plugin.database, name, role=role.value, password_hash=password_hash)
    _tell(plugin, name, f"added as {role.value}")
    console.print(f"{name} may sign in as {role.value}.", highlight=False)


@app.command("list")
def list_users(config: Config = None) -> None:
    """Show all users, their roles, and how many browsers each is signed in with. OIDC users are the provider's."""
    from plugin.index import people
    from plugin.web.words import clock

    table = Table("name", "role", "since", "signed in")
    users = people.users(plugin_with_index(config).database)
    for user in users:
        table.add_row(user.name, user.role, clock(user.created_at), str(user.sessions) if user.sessions else "")
    console.print(table if users else "No users: the page answers this machine alone. Add one by `hlip user add`.")


@app.command()
def remove(name: Name, config: Config = None) -> None:
    """Remove a user, and sign them out everywhere at once."""
    from plugin.index import people

    plugin = plugin_with_index(config)
    people.remove_user(plugin.database, name)
    _tell(plugin, name, "removed")
    console.print(f"{name} may sign in no more.", highlight=False)
    settings = plugin.settings
    if not people.has_users(plugin.database) and not settings.web.others_come and not settings.oidc.issuer:
        errors.print("There are no users now: the page answers everyone on this machine, as an operator.")


@app.command()
def password(name: Name, config: Config = None) -> None:
    """Give a user a new password, and sign them out everywhere. It is asked for, or read from standard input."""
    from plugin.index import people
    from plugin.passwords import hash_password

    plugin = plugin_with_index(config)
    if all(user.name != name for user in people.users(plugin.database)):
        raise ValueError(f"there is no user {name}: see `hlip user list`")
    people.set_password(plugin.database, name, hash_password(_read_password(name)))
    _tell(plugin, name, "new password")
    console.print(f"{name} has a new password.", highlight=False)


@app.command()
def role(
    name: Name, role: Annotated[RoleName, typer.Argument(help="viewer or operator.")], config: Config = None
) -> None:
    """Change what a user may do; it counts at once, in open sessions too."""
    from plugin.index import people

    plugin = plugin_with_index(config)
    people.set_role(plugin.database, name, role.value)
    _tell(plugin, name, f"is {role.value}")
    console.print(f"{name} is {role.value} now.", highlight=False)
