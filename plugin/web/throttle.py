"""How long someone who guessed wrong has to wait: by the name that is tried, and by the address that it comes from."""

from functools import partial

from plugin.index import people
from plugin.index.database import Database

FREE = {"name": 5, "address": 20}
"""So many wrong guesses cost nothing; from then on the wait doubles with each."""

LONGEST_WAIT_SECONDS = 60.0
"""Not longer: a stranger who stops guessing keeps a user out no longer than this. One who is at it as each wait ends
may still be the first again and again; the log and the audit trail then show it.
"""


def keys(name: str, address: str) -> dict[str, str]:
    """What is counted. Behind a proxy that is not trusted all come from one address: give ""."""
    named = {"name": f"name {name[:64]}"}
    return {**named, "address": f"address {address[:64]}"} if address else named


def try_now(database: Database, counted: dict[str, str]) -> float:
    """Count a guess, as a wrong one until `was_right`; the seconds to wait, uncounted, for who may not try now."""
    return people.count_guess(database, {key: partial(_wait_seconds, FREE[kind]) for kind, key in counted.items()})


def was_right(database: Database, counted: dict[str, str]) -> None:
    """The name's failures are forgotten; not the address': whoever has one account might guess at others from it."""
    people.forget_failures(database, counted["name"])
    if "address" in counted:
        people.take_back_guess(database, counted["address"])


def _wait_seconds(free: int, count: int) -> float:
    return min(LONGEST_WAIT_SECONDS, 2.0 ** min(count - free, 16)) if count >= free else 0.0
