"""What lies in deploy/ for containers, clusters and service managers: held against schemas, tools and our own code."""

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_pydantic import ComposeSpecification
from pydantic import BaseModel
from sqlalchemy import create_engine, text
from typer.main import get_command

from peers import needs
from plugin.cli import app
from plugin.index.database import Database
from plugin.index.tables import Series, Study
from plugin.lifecycle import WORK_QUEUES, SeriesState, StudyState
from plugin.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KUBERNETES = [
    document
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
PARTS = ("container", "kubernetes", "systemd", "nginx", "orthanc", "ohif", "prometheus", "grafana")
DOCUMENTS = (
    "INSTALL.md",
    "OPERATE.md",
    "CONFORMANCE.md",
    "kubernetes/README.md",
    "hlip.sh",
    "compose.yaml",
    "compose.env.example",
)


def files() -> list[Path]:
    found = [path for part in PARTS for path in sorted((DEPLOY / part).rglob("*")) if path.is_file()]
    return [*found, *(DEPLOY / name for name in DOCUMENTS), ROOT / "README.md"]


@cache
def sections() -> dict[str, set[str]]:
    """The keys of each section that is a table of its own."""
    return {
        name: set(field.default.__class__.model_fields) if isinstance(field.default, BaseModel) else set()
        for name, field in Settings.model_fields.items()
    }


def is_setting(variable: str) -> bool:
    section, _, key = variable.removeprefix("HLIP_").lower().partition("__")
    known = sections()
    return section in known and (key in known[section] if key else not known[section])


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_is_a_setting(path: Path) -> None:
    text = path.read_text()
    nested = set(re.findall(r"\bHLIP_[A-Z]+__[A-Z_]*[A-Z]\b", text)) - {"HLIP_SECTION__KEY"}
    assert {variable for variable in nested if not is_setting(variable)} == set()


@cache
def commands() -> dict[str, set[str]]:
    """Subcommands by the words before them, as ``hlip`` has them."""
    found: dict[str, set[str]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        for name, sub in getattr(command, "commands", {}).items():
            found.setdefault(" ".join(words), set()).add(name)
            walk(sub, (*words, name))

    walk(get_command(app), ())
    return found


def check_command(words: list[str]) -> None:
    """Raises AssertionError for a command that `hlip` does not know, or a queue that is none."""
    known = commands()
    path: list[str] = []
    for word in words:
        if " ".join(path) not in known:
            break
        assert word in known[" ".join(path)], f"hlip {' '.join(words)}"
        path.append(word)
    assert all(words[at + 1] in WORK_QUEUES for at, word in enumerate(words) if word == "--queue")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_one_of_hlips(path: Path) -> None:
    """In code, that is after a back quote, a prompt or a path: prose may say anything."""
    for line in re.findall(r"(?:`|bin/|-u hlip |^ {4}|web )hlip ([a-z][^`#|\n\\]*)", path.read_text(), re.MULTILINE):
        words = [word for word in re.split(r"[\s,.;:)]+", line) if word and not word.startswith(("[", "("))]
        words = words[: next((at for at, word in enumerate(words) if not re.fullmatch(r"[a-z-]+", word)), len(words))]
        if words:
            check_command(words)


# ---- compose -----------------------------------------------------------------------------------------------------


ROLES = ("listener", "scheduler", "prepare", "analyse", "analyse-gpu", "deliver", "signal", "web")


def filled(value: str, variables: dict[str, str]) -> str:
    """A value with its ``${NAME:-default}`` and ``${NAME:?}`` put in, as compose does it."""

    def put(found: re.Match[str]) -> str:
        name, operator, default = found["name"], found["operator"], found["default"] or ""
        if operator == ":?":
            assert variables.get(name), f"{name} is needed and compose.env.example does not have it"
        return variables.get(name) or default

    return re.sub(r"\$\{(?P<name>\w+)(?P<operator>:[-?])?(?P<default>[^}]*)\}", put, value)


def example() -> dict[str, str]:
    """compose.env.example, with something for all that a site must set itself."""
    rows = re.findall(r"^(\w+)=(.*)$", (DEPLOY / "compose.env.example").read_text(), re.MULTILINE)
    optional = ("HLIP_PUBLIC_URL", "HLIP_TIME_ZONE")
    return {name: value or "a-long-random-text" for name, value in rows if value or name not in optional}


def settings_of(environment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What a role makes of its variables."""
    for name in [name for name in os.environ if name.startswith("HLIP_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith("HLIP_"):
            monkeypatch.setenv(name, str(value))
    return Settings()


def test_compose_file_follows_its_schema() -> None:
    ComposeSpecification.model_validate({key: value for key, value in COMPOSE.items() if not key.startswith("x-")})


def test_compose_file_names_only_what_it_defines() -> None:
    services, volumes = COMPOSE["services"], COMPOSE["volumes"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        assert set(service["networks"]) <= set(COMPOSE["networks"]), name
        for volume in service.get("volumes", ()):
            source = filled(volume, {}).split(":")[0]
            made_by_the_site = ("./models", "./certificates")
            assert source in volumes or source in made_by_the_site or (DEPLOY / source).exists(), volume


def test_compose_variables_are_in_the_example_or_have_a_default() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    needed = set(re.findall(r"\$\{(\w+):\?", text))
    assert needed <= set(re.findall(r"^(\w+)=", (DEPLOY / "compose.env.example").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", ROLES)
def test_compose_roles_are_commands_with_good_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = COMPOSE["services"][name]
    check_command(service["command"])
    variables = {key: filled(str(value), example()) for key, value in service["environment"].items()}
    settings = settings_of(variables, monkeypatch)
    assert settings.destinations[0].name == "orthanc"
    assert settings.listener.calling_ae_titles == (("ORTHANC",) if name == "listener" else ())
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert {"listener": 11112, "web": 8080}.get(name) in (None, settings.listener.port, settings.web.port)


def test_compose_has_every_role_and_every_queue() -> None:
    words = [service["command"] for name, service in COMPOSE["services"].items() if name in ROLES]
    assert {row[0] for row in words} == {"listen", "schedule", "work", "web"}
    assert {word for row in words for word in row if word in WORK_QUEUES} == set(WORK_QUEUES)


def test_prometheus_finds_the_roles_at_their_ports() -> None:
    (roles, web) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    (found,), (page,) = roles["dns_sd_configs"], web["dns_sd_configs"]
    assert set(found["names"]) == set(ROLES) - {"web"} and page["names"] == ["web"]
    shared = COMPOSE["x-hlip"]["environment"]
    ports = {value for key, value in shared.items() if re.fullmatch("HLIP_METRICS__[A-Z]+_PORT", key)}
    assert ports == {found["port"]} and page["port"] == 8080


def test_orthanc_of_the_stack_sends_to_the_listener() -> None:
    text = re.sub(r"^\s*//.*$", "", (DEPLOY / "orthanc" / "orthanc.json").read_text(), flags=re.MULTILINE)
    (title, host, port) = json.loads(text)["DicomModalities"]["hlip"]
    assert (title, port) == ("HLIP", 11112) and host in COMPOSE["services"]


# ---- Kubernetes --------------------------------------------------------------------------------------------------


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [document for document in KUBERNETES if document["kind"] in kinds]


def named(document: dict[str, Any]) -> str:
    return f"{document['kind']} {document.get('metadata', {}).get('name', '')}"


@pytest.mark.parametrize("document", KUBERNETES, ids=named)
def test_kubernetes_manifests_follow_their_schemas(document: dict[str, Any]) -> None:
    if "keda.sh" in document["apiVersion"] or document["kind"] == "Kustomization":
        assert document["spec"] if document["kind"] != "Kustomization" else document["resources"]
        return  # not Kubernetes' own: no schema is at hand
    kubernetes_validate.validate(document, "1.32", strict=True)


def test_kustomization_names_every_file() -> None:
    (kustomization,) = of_kind("Kustomization")
    there = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")}
    assert set(kustomization["resources"]) == there - {"kustomization.yaml", "secret.example.yaml"}


def test_kustomize_puts_it_together() -> None:
    made = subprocess.run(
        [needs("kubectl", "kubernetes-client"), "kustomize", DEPLOY / "kubernetes"], capture_output=True, check=True
    )
    documents = list(yaml.safe_load_all(made.stdout))
    assert all(d["metadata"]["namespace"] == "hlip" for d in documents if d["kind"] != "Namespace")


@pytest.mark.parametrize("document", of_kind("Deployment", "StatefulSet"), ids=named)
def test_pods_are_commands_with_good_settings_and_no_rights(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = document["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check_command(container["args"])
    sources = {"hlip-settings": "data", "hlip-secrets": "stringData"}
    by_name = {d["metadata"]["name"]: d for d in of_kind("ConfigMap", "Secret")}
    variables: dict[str, str] = {}
    for row in container["envFrom"]:
        ((_, reference),) = row.items()
        variables |= by_name[reference["name"]][sources[reference["name"]]]
    variables |= {row["name"]: row["value"] for row in container.get("env", ())}
    settings = settings_of(variables, monkeypatch)
    has_secrets = any("secretRef" in row for row in container["envFrom"])
    assert has_secrets == (container["args"] != ["listen"]) == settings.index_url.startswith("postgresql")
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    labels = document["spec"]["template"]["metadata"]["labels"]
    assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_only_one_scheduler_runs_at_a_time() -> None:
    (scheduler,) = (d for d in of_kind("Deployment") if d["metadata"]["name"] == "hlip-scheduler")
    assert scheduler["spec"]["replicas"] == 1 and scheduler["spec"]["strategy"] == {"type": "Recreate"}


def test_policies_and_budgets_select_pods_that_there_are() -> None:
    roles = {d["metadata"]["labels"]["app.kubernetes.io/component"] for d in of_kind("Deployment", "StatefulSet")}
    for document in of_kind("PodDisruptionBudget", "NetworkPolicy", "Service"):
        spec = document["spec"]
        selector = spec.get("selector") or spec.get("podSelector") or {}
        labels = selector.get("matchLabels", selector)
        chosen = {labels[key] for key in labels if key == "app.kubernetes.io/component"}
        chosen |= {value for row in selector.get("matchExpressions", ()) for value in row["values"]}
        assert chosen <= roles, named(document)


def autoscaled() -> dict[str, str]:
    """The query of each ScaledObject, by its target."""
    return {
        document["spec"]["scaleTargetRef"]["name"]: document["spec"]["triggers"][0]["metadata"]["query"]
        for document in of_kind("ScaledObject")
    }


def test_autoscaling_counts_what_waits_in_the_index(new_database: str, tmp_path: Path) -> None:
    workloads = {d["metadata"]["name"] for d in of_kind("Deployment")}
    queries = autoscaled()
    assert set(queries) == {"hlip-prepare", "hlip-analyse"} <= workloads
    database = Database(new_database, lock=tmp_path / "lock")
    database.upgrade()
    with database.write() as session:
        study = Study(study_instance_uid="1.2", state=StudyState.READY)
        study.series = [
            Series(series_instance_uid="1.2.1", state=SeriesState.PREPARING),
            Series(series_instance_uid="1.2.2", state=SeriesState.READY),
            Series(series_instance_uid="1.2.3", state=SeriesState.PREPARED),
        ]
        session.add(study)
    database.close()
    engine = create_engine(new_database)
    with engine.connect() as connection:
        counted = {name: connection.scalar(text(query)) for name, query in queries.items()}
    engine.dispose()
    assert counted == {"hlip-prepare": 2, "hlip-analyse": 1}


# ---- systemd, nginx, the image -----------------------------------------------------------------------------------


UNITS = [*sorted((DEPLOY / "systemd").glob("hlip*.*")), DEPLOY / "orthanc" / "orthanc-forward.service"]


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with our units, the host's own, and something to execute."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(DEPLOY / "systemd", root / "etc/systemd/system")
    shutil.copy(DEPLOY / "orthanc" / "orthanc-forward.service", root / "etc/systemd/system")
    shutil.copytree("/lib/systemd/system", root / "lib/systemd/system", symlinks=True)
    for executable in ("opt/hlip/bin/hlip", "usr/bin/python3"):
        (root / executable).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", root / executable)
    return root


def test_units_are_good(units: Path) -> None:
    names = [path.name.replace("@.", "@0.") for path in UNITS if path.is_file()]
    tool = needs("systemd-analyze", "systemd")
    checked = subprocess.run([tool, "verify", f"--root={units}", *names], capture_output=True, text=True, check=False)
    mine = [line for line in checked.stderr.splitlines() if "hlip" in line or "forward" in line]
    assert checked.returncode == 0 and mine == [], checked.stderr


def test_units_are_hardened(units: Path) -> None:
    tool = needs("systemd-analyze", "systemd")
    names = ("hlip-listen.service", "hlip-prepare@0.service", "hlip-analyse@0.service", "orthanc-forward.service")
    for name in names:
        command = [tool, "security", "--offline=true", f"--root={units}", "--threshold=25", "--no-pager", name]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout


def test_units_run_every_role_and_every_queue() -> None:
    rows = [
        re.search(r"^ExecStart=/opt/hlip/bin/hlip (.*)$", p.read_text(), re.MULTILINE) for p in UNITS if p.is_file()
    ]
    words = [row[1].split() for row in rows if row]
    for row in words:
        check_command(row)
    assert {row[0] for row in words} == {"listen", "schedule", "work", "web"}
    assert {word for row in words for word in row if word in WORK_QUEUES} == set(WORK_QUEUES)


def test_commands_have_the_settings_of_the_units() -> None:
    drop_in = (DEPLOY / "systemd" / "hlip-.service.d" / "50-hardening.conf").read_text()
    script = (DEPLOY / "hlip.sh").read_text()
    (environment,) = re.findall(r"^Environment=(.*)$", drop_in, re.MULTILINE)
    assert set(re.findall(r" -E (\S+)", script)) == set(environment.split()) - {"HLIP_LOG__FORMAT=json"}
    (secrets,) = re.findall(r"^EnvironmentFile=.*$", drop_in, re.MULTILINE)
    assert f"-p {secrets} " in script and "--uid=hlip " in script and '/opt/hlip/bin/hlip "$@"' in script


def test_image_is_made_of_what_there_is_and_runs_as_nobody() -> None:
    text = (DEPLOY / "container" / "Dockerfile").read_text()
    copied = [name for row in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for name in row.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    allowed = {row[1:] for row in (ROOT / ".dockerignore").read_text().splitlines() if row.startswith("!")}
    assert set(copied) == allowed
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
    (torch,) = re.findall(r'^ARG TORCH="(.*)"$', text, re.MULTILINE)
    assert f"TORCH ?= {torch}\n" in (ROOT / "Makefile").read_text()
    assert f"pip install {torch}\n" in (DEPLOY / "INSTALL.md").read_text()
    environment = dict(re.findall(r"(HLIP_\w+)=(\S+)", text))
    assert all(is_setting(name) for name in environment)
