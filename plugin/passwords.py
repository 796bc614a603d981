"""Passwords of local users, as Argon2id hashes (RFC 9106, the second recommended choice: 64 MiB of memory)."""

import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

MIN_LENGTH = 12
MAX_LENGTH = 256
AT_ONCE = threading.BoundedSemaphore(2)
"""Each takes 64 MiB: guesses must not fill the memory of a host that analyses studies."""

_hasher = PasswordHasher()
_NOBODYS = "$argon2id$v=19$m=65536,t=3,p=4$O3Uchy5UXtruBsxED+XemQ$9W4hRuw0FGNIZ6zHAwwnD1my4eojP/L6pz4+Hyie2WU"


def check_password(password: str, name: str) -> None:
    """Raises ValueError where it is too easy to guess, or too long."""
    if len(password) < MIN_LENGTH:
        raise ValueError(f"the password is too short: {MIN_LENGTH} characters or more, please (a few words will do)")
    if len(password) > MAX_LENGTH:
        raise ValueError(f"the password is longer than {MAX_LENGTH} characters")
    if len(set(password)) < 5 or name.casefold() in password.casefold():
        raise ValueError("the password is too easy to guess: it repeats itself, or holds the name")


def hash_password(password: str) -> str:
    with AT_ONCE:
        return _hasher.hash(password)


def verify(password: str, password_hash: str | None) -> bool:
    """Whether it is the one. For a user that there is not (None) it takes as long, and never is."""
    if len(password) > MAX_LENGTH:
        return False
    try:
        with AT_ONCE:
            return _hasher.verify(password_hash or _NOBODYS, password) and password_hash is not None
    except (VerificationError, InvalidHashError):
        return False
