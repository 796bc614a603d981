"""nginx in front, as deploy/nginx has it: it ends TLS, and what hlip answers to a sender is what the sender hears."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from certificates import Authority, Issued
from peers import free_port, is_open, needs, wait_until
from series import head, series
from studies import encoded
from web import TYPE, multipart, web

NGINX = Path(__file__).resolve().parents[1] / "deploy" / "nginx"
TOKEN = "a-long-random-text"


def configuration(folder: Path, name: str, replaced: dict[str, str]) -> Path:
    """A whole nginx configuration in `folder` around one of ours."""
    server = (NGINX / name).read_text()
    for old, new in replaced.items():
        assert old in server
        server = server.replace(old, new)
    (folder / name).write_text(server)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = folder / "nginx.conf"
    whole.write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;\n"
        "events { worker_connections 64; }\n"
        f"http {{\naccess_log {folder}/access.log;\n{paths}include {folder}/{name};\n}}\n"
    )
    return whole


def checked(whole: Path) -> subprocess.CompletedProcess[str]:
    command = [needs("nginx", "nginx-light"), "-t", "-c", str(whole), "-p", str(whole.parent)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def in_front(folder: Path, issued: Issued, *, upstream: int, port: int) -> Iterator[int]:
    """nginx with hlip.conf on a free port before hlip on another; the port that redirects to it."""
    plain = free_port()
    stated = (NGINX / "compose-upstream.conf").read_text()
    (folder / "upstream.conf").write_text(stated.replace("web:8080", f"127.0.0.1:{upstream}"))
    whole = configuration(
        folder,
        "hlip.conf",
        {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "listen 80": f"listen 127.0.0.1:{plain}",
            "/etc/nginx/hlip-upstream.conf": str(folder / "upstream.conf"),
            "/etc/nginx/certificates/certificate.pem": str(issued.certificate),
            "/etc/nginx/certificates/key.pem": str(issued.key),
        },
    )
    assert checked(whole).returncode == 0, checked(whole).stderr
    process = subprocess.Popen([needs("nginx", "nginx-light"), "-c", str(whole), "-p", str(folder)])
    try:
        wait_until(lambda: is_open(port), "nginx")
        yield plain
    finally:
        process.terminate()
        process.wait(30)


def test_senders_store_over_tls_and_hear_our_own_answers(tmp_path: Path) -> None:
    needs("nginx", "nginx-light")
    folder = tmp_path / "nginx"
    folder.mkdir()
    authority = Authority(tmp_path / "ca", "authority")
    port = free_port()
    url = f"https://127.0.0.1:{port}"
    with (
        web(tmp_path, stow_token=TOKEN, public_url=url) as hlip,
        in_front(folder, authority.issue("page"), upstream=hlip.port, port=port) as plain,
        requests.Session() as session,
    ):
        session.trust_env = False  # else a variable's authorities win over ours
        session.verify = str(authority.certificate)
        store = f"{url}/dicom-web/studies"
        body = multipart([encoded(image) for image in series(head(2))])
        refused = session.post(store, data=body, headers={"Content-Type": TYPE}, timeout=30)
        assert refused.status_code == 401
        allowed = {"Content-Type": TYPE, "Authorization": f"Bearer {TOKEN}"}
        assert session.post(store, data=body, headers=allowed, timeout=30).status_code == 200
        assert len(hlip.spool.arrivals(10)) == 2
        assert session.get(f"{url}/metrics", timeout=30).status_code == 404
        health = session.get(f"{url}/healthz", timeout=30)
        assert health.status_code == 200 and "nginx/" not in health.headers["Server"]
        moved = requests.get(f"http://127.0.0.1:{plain}/", allow_redirects=False, timeout=30)
        assert moved.status_code == 301 and moved.headers["Location"].startswith("https://")
    assert not (folder / "access.log").read_text().count("studies")


def test_the_viewers_configuration_is_good(tmp_path: Path) -> None:
    result = checked(configuration(tmp_path, "viewer.conf", {"listen 3000": f"listen 127.0.0.1:{free_port()}"}))
    assert result.returncode == 0, result.stderr
