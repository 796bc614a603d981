"""Sign-in by an OpenID Connect provider: authorization code flow with PKCE (OpenID Connect Core 1.0, RFC 7636).

Nothing that comes through the browser is believed: the code is exchanged at the provider, and what it says of the
person is a token that it signed, for us, for this very sign-in.
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from plugin.index.people import Role
from plugin.settings import OidcSettings, is_loopback

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
"""Signatures with a key that only the provider has; never "none", never a secret that we share with it."""

KEEP_SECONDS = 3600.0
KEYS_AGAIN_SECONDS = 10.0
"""A token with an unknown key has the provider's keys read again, but not more often than this."""

LEEWAY_SECONDS = 60
MAX_ANSWER_BYTES = 1 << 20


class OidcError(Exception):
    """A sign-in by the provider came to nothing; the text is for whoever tried, and quotes nothing from outside."""


@dataclass(frozen=True)
class Attempt:
    """One sign-in under way: what the browser takes along, and what it must come back with."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def new(cls) -> "Attempt":
        return cls(secrets.token_urlsafe(24), secrets.token_urlsafe(24), secrets.token_urlsafe(48))

    @property
    def challenge(self) -> str:
        """RFC 7636 section 4.2, S256."""
        return base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()


class Provider:
    """A provider, by its discovery document; safe for threads. Every method raises OidcError."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._found: dict[str, Any] = {}
        self._found_at = -KEEP_SECONDS
        self._keys: KeySet | None = None
        self._keys_at = -KEEP_SECONDS

    def authorization_url(self, attempt: Attempt, redirect_uri: str) -> str:
        """Where the browser goes to sign in."""
        endpoint = self._endpoint("authorization_endpoint")
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self._settings.scopes),
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": attempt.challenge,
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(query)}"

    def person(self, code: str, attempt: Attempt, redirect_uri: str) -> tuple[str, Role]:
        """Name and role of who signed in."""
        token = self._exchange(code, attempt, redirect_uri).get("id_token")
        if not isinstance(token, str):
            raise OidcError("the provider gave no ID token")
        claims = self._claims(token, attempt)
        return self._name(claims), self._role(claims)

    # ---- what the provider says ------------------------------------------------------------------------------

    def _exchange(self, code: str, attempt: Attempt, redirect_uri: str) -> dict[str, Any]:
        """The answer of the token endpoint (RFC 6749 section 4.1.3)."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self._settings.client_id,
            "code_verifier": attempt.verifier,
        }
        secret = self._settings.client_secret.get_secret_value()
        basic = None
        if secret and "client_secret_basic" in self._discovered().get(
            "token_endpoint_auth_methods_supported", ["client_secret_basic"]
        ):
            basic = (self._settings.client_id, secret)
        elif secret:
            form["client_secret"] = secret
        return self._ask("POST", self._endpoint("token_endpoint"), data=form, auth=basic)

    def _claims(self, token: str, attempt: Attempt) -> dict[str, Any]:
        """Of an ID token that is signed, fresh, and for us (OpenID Connect Core 1.0 section 3.1.3.7)."""
        settings = self._settings
        registry = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": settings.issuer},
            aud={"essential": True, "value": settings.client_id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": attempt.nonce},
        )
        try:
            claims = self._decoded(token).claims
            registry.validate(claims)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise OidcError("the provider's ID token is not valid") from error
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if claims.get("azp", None if several else settings.client_id) != settings.client_id:
            raise OidcError("the provider's ID token is for someone else")
        return claims

    def _decoded(self, token: str) -> jwt.Token:
        """Raises JoseError, ValueError."""
        try:
            return jwt.decode(token, self._key_set(), algorithms=ALGORITHMS)
        except (JoseError, ValueError):
            return jwt.decode(token, self._key_set(is_new=True), algorithms=ALGORITHMS)  # keys change now and then

    def _key_set(self, *, is_new: bool = False) -> KeySet:
        with self._lock:
            age = time.monotonic() - self._keys_at
            if self._keys is None or age > (KEYS_AGAIN_SECONDS if is_new else KEEP_SECONDS):
                answer = self._ask("GET", self._checked(self._discover().get("jwks_uri")))
                try:
                    self._keys = KeySet.import_key_set(answer)  # type: ignore[arg-type]
                except (JoseError, ValueError, TypeError, KeyError) as error:
                    raise OidcError("the provider's keys cannot be read") from error
                self._keys_at = time.monotonic()
            return self._keys

    def _discovered(self) -> dict[str, Any]:
        with self._lock:
            return self._discover()

    def _discover(self) -> dict[str, Any]:
        """OpenID Connect Discovery 1.0 section 4."""
        if time.monotonic() - self._found_at > KEEP_SECONDS:
            found = self._ask("GET", f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration")
            if found.get("issuer") != self._settings.issuer:
                raise OidcError("the provider calls itself by another name than oidc.issuer")
            self._found, self._found_at = found, time.monotonic()
        return self._found

    def _endpoint(self, name: str) -> str:
        return self._checked(self._discovered().get(name))

    def _checked(self, url: object) -> str:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or not (parts.scheme == "https" or is_loopback(parts.hostname or "")):
            raise OidcError("the provider's addresses are not https")
        return str(url)

    def _ask(self, method: str, url: str, **more: Any) -> dict[str, Any]:
        try:
            with requests.request(
                method,
                url,
                timeout=self._settings.timeout_seconds or None,
                verify=self._settings.tls_ca or True,
                allow_redirects=False,
                stream=True,
                headers={"Accept": "application/json"},
                **more,
            ) as answer:
                answer.raw.decode_content = True
                body = answer.raw.read(MAX_ANSWER_BYTES + 1)
                if answer.status_code != 200 or len(body) > MAX_ANSWER_BYTES:
                    raise OidcError(f"the provider answered with status {answer.status_code}")
                found = json.loads(body)
        except (requests.RequestException, OSError, ValueError) as error:
            raise OidcError("the provider cannot be reached, or its answer cannot be read") from error
        if not isinstance(found, dict):
            raise OidcError("the provider's answer cannot be read")
        return found

    # ---- who it is -------------------------------------------------------------------------------------------

    def _name(self, claims: Mapping[str, Any]) -> str:
        name = claims.get(self._settings.name_claim) or claims["sub"]
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name.strip()) <= 64:
            raise OidcError(f"the provider's claim {self._settings.name_claim} is no name")
        return name.strip()

    def _role(self, claims: Mapping[str, Any]) -> Role:
        """By the claim that holds it, whose path has dots where it lies deeper."""
        value: Any = claims
        for key in self._settings.role_claim.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        values = value if isinstance(value, list) else [value]
        has = {each for each in values if isinstance(each, str)}
        if has & set(self._settings.operators):
            return "operator"
        if has & set(self._settings.viewers):
            return "viewer"
        raise OidcError("you have no role here: the provider names none that the settings know ([oidc] viewers)")
