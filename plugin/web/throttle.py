"""How long someone who guessed wrong has to wait: by the name that is tried, and by the address that it comes from."""

from plugin.index import people
from plugin.index.database import Database

FREE = {"name": 5, "address": 20}
"""So many wrong guesses cost nothing; from then on the wait doubles with each."""

LONGEST_WAIT_SECONDS = 60.0
"""Not longer: else a stranger could keep a user out for as long as he likes."""


def keys(name: str, address: str) -> dict[str, str]:
    """What is counted. Behind a proxy all come from one address, which then says nothing: give ""."""
    named = {"name": f"name {name[:64]}"}
    return {**named, "address": f"address {address[:64]}"} if address else named


def wait_seconds(database: Database, counted: dict[str, str]) -> float:
    """0 for who may try now."""
    waits = [0.0]
    for kind, key in counted.items():
        count, ago = people.failures(database, key)
        if count >= FREE[kind]:
            waits.append(min(LONGEST_WAIT_SECONDS, 2.0 ** min(count - FREE[kind], 16)) - ago)
    return max(waits)
