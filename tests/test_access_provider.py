"""Signing in to the page by a provider (OpenID Connect), honest or not."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

import provider as oidc
from plugin.web.app import create_app
from test_access_audit import person_of, trail
from visitors import RETRY, Page, Visitor, showing


@pytest.fixture(scope="module")
def keycloak() -> Iterator[oidc.Provider]:
    with oidc.provider() as made:
        yield made


@pytest.fixture(scope="module")
def sso_page(keycloak: oidc.Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("sso")
    settings = {
        "issuer": keycloak.issuer, "client_id": oidc.CLIENT_ID, "client_secret": oidc.CLIENT_SECRET,
        "role_claim": "realm.roles",
    }  # fmt: skip
    with showing(folder, oidc=settings, audit={"file": str(folder / "audit.log")}) as shown:
        yield shown


@pytest.fixture(autouse=True)
def well_behaved(request: pytest.FixtureRequest) -> None:
    if "keycloak" in request.fixturenames:
        keycloak = request.getfixturevalue("keycloak")
        keycloak.wrong = ""
        keycloak.claims = {"preferred_username": "Grète Müller", "realm": {"roles": ["cook", "hlip-viewer"]}}


def through(visitor: Visitor, to: str = "/operations") -> requests.Response:
    """The way of a browser to the provider and back: the answer of the callback."""
    going = visitor.get("/sign-in/provider", params={"next": to})
    if going.status_code != 303:
        return going
    at_provider = requests.get(going.headers["Location"], allow_redirects=False, timeout=30)
    return visitor.get(at_provider.headers["Location"])


def test_the_provider_signs_people_in_with_the_role_that_it_names(keycloak: oidc.Provider, sso_page: Page) -> None:
    visitor = sso_page.visitor()
    assert "Single sign-on" in visitor.get("/sign-in").text and 'name="password"' not in visitor.get("/sign-in").text
    answer = through(visitor)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/operations")
    shown = visitor.get("/operations").text
    assert "Grète Müller" in shown and "viewer" in shown
    assert visitor.post(RETRY, headers={"X-CSRF-Token": visitor.csrf}).status_code == 403
    assert person_of(trail(sso_page)[-1])["UserID"] == "Grète Müller"
    keycloak.claims["realm"] = {"roles": "hlip-operator"}
    other = sso_page.visitor()
    through(other)
    assert other.post(RETRY, headers={"X-CSRF-Token": other.csrf}).status_code == 303


@pytest.mark.parametrize("wrong", oidc.WRONG)
def test_a_provider_or_a_forger_that_says_something_wrong_lets_nobody_in(
    keycloak: oidc.Provider, sso_page: Page, wrong: str
) -> None:
    fresh = create_app(sso_page.plugin).state  # nothing of the discovery is kept from before
    assert not hasattr(fresh, "provider")
    keycloak.wrong = wrong
    with showing_again(sso_page) as shown:
        visitor = shown.visitor()
        answer = through(visitor)
        assert answer.status_code in (403, 503) and "hlip" not in visitor.cookies
        assert visitor.get("/operations").status_code == 303


def showing_again(page: Page) -> Any:
    """The same index, served by another process, as it were."""
    from contextlib import contextmanager

    from plugin.web.server import serving

    @contextmanager
    def serve() -> Iterator[Page]:
        with serving(create_app(page.plugin), page.plugin.settings.web) as server:
            yield Page(page.plugin, server.port)

    return serve()


def test_a_code_counts_only_for_the_browser_that_asked_and_only_once(keycloak: oidc.Provider, sso_page: Page) -> None:
    victim, attacker = sso_page.visitor(), sso_page.visitor()
    going = attacker.get("/sign-in/provider").headers["Location"]
    back = requests.get(going, allow_redirects=False, timeout=30).headers["Location"]
    victim.get("/sign-in/provider")
    assert victim.get(back).status_code == 403  # the attacker's code, in the victim's browser
    assert attacker.get(back).status_code == 303
    replay = sso_page.visitor()
    assert replay.get(back).status_code == 403


def test_a_provider_that_changes_its_keys_is_asked_for_the_new_ones(
    keycloak: oidc.Provider, sso_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plugin.web import oidc as ours

    assert through(sso_page.visitor()).status_code == 303
    keycloak.new_key("2")
    monkeypatch.setattr(ours, "KEYS_AGAIN_SECONDS", 0.0)
    assert through(sso_page.visitor()).status_code == 303


def test_a_claim_that_is_no_list_of_texts_gives_no_role(keycloak: oidc.Provider, sso_page: Page) -> None:
    for roles in (None, 7, {"hlip-operator": 1}, [["hlip-operator"]], []):
        keycloak.claims["realm"] = {"roles": roles}
        assert through(sso_page.visitor()).status_code == 403, json.dumps(roles)
    keycloak.claims["realm"] = "hlip-operator"
    assert through(sso_page.visitor()).status_code == 403
