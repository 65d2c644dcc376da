"""Compose files and Dockerfiles as they are written; nothing here needs an engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker_stack import LAB, ROOT, SERVICES
from quintet_common.models_yml import load_config

DOCKERFILES = sorted((ROOT / "services").glob("*/Dockerfile"))
OVERLAYS = sorted((ROOT / "compose").glob("*.yaml"))


class Loader(yaml.SafeLoader):
    """YAML with Compose's own tags, as far as these files use them."""


Loader.add_constructor("!reset", lambda *_: None)


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.load(path.read_text(), Loader))


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return read(ROOT / "compose.yaml")


def variables(text: str) -> set[str]:
    """What is asked for by ``${NAME}``, and what is passed on: upper-case keys without a value."""
    return set(re.findall(r"\$\{(\w+)", text)) | set(re.findall(r"^ +([A-Z_]+):$", text, re.MULTILINE))


def value(text: str) -> str:
    """A setting as it is when nobody sets anything."""
    return re.sub(r"\$\{\w+:?-?([^}]*)\}", r"\1", text)


def test_all_the_services_are_there(base: dict[str, Any]) -> None:
    assert base["services"].keys() == {"router", *SERVICES, "prometheus", "grafana"}
    shown = {name for name, service in base["services"].items() if "profiles" not in service}
    assert shown == {"router", *SERVICES}


@pytest.mark.parametrize("name", ["router", *SERVICES, "prometheus", "grafana"])
def test_every_service_is_locked_up_watched_and_limited(base: dict[str, Any], name: str) -> None:
    service = base["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["init"] is True
    uid = service["user"].split(":")[0]
    assert int(uid) > 0
    limits = service["deploy"]["resources"]["limits"]
    assert limits["pids"] > 0
    assert re.fullmatch(r"\d+[mg]", value(limits["memory"]))
    assert {"interval", "timeout"} <= service["healthcheck"].keys()
    assert "test" in service["healthcheck"] or service["image"].startswith("quintet/"), "ours are in the image"
    assert service["logging"]["options"]["max-size"], "logs do not fill the disk"


def test_ports_are_of_this_machine_alone_and_services_have_none(base: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in base["services"].items() if "ports" in service}
    assert published.keys() == {"router", "prometheus", "grafana"}
    for ports in published.values():
        for port in ports:
            assert value(port).startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_gpus_a_cache_memory_to_share_and_the_one_models_yml(base: dict[str, Any], name: str) -> None:
    service = base["services"][name]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert "cache:/cache" in service["volumes"]
    assert service["shm_size"]
    assert service["configs"] == base["services"]["router"]["configs"]
    assert service["networks"] == ["inside"]
    assert f"--upstream=dns+http://{name}:8000" in base["services"]["router"]["command"]
    assert base["services"]["router"]["depends_on"][name]["condition"] == "service_healthy"
    # One service that cannot start must not keep the router from serving the others.
    assert base["services"]["router"]["depends_on"][name]["required"] is False


def test_chat_and_multimodal_are_one_image(base: dict[str, Any]) -> None:
    assert base["services"]["chat"]["image"] == base["services"]["multimodal"]["image"]
    assert base["services"]["chat"]["build"] == base["services"]["multimodal"]["build"]


def test_on_cpus_no_service_wants_a_gpu_and_images_have_tags_of_their_own() -> None:
    cpu = read(ROOT / "compose" / "cpu.yaml")["services"]
    assert cpu.keys() == set(SERVICES)
    for service in cpu.values():
        assert service["deploy"]["resources"]["reservations"] is None
        assert service["image"].endswith("-cpu")
        assert value(service["build"]["args"]["TORCH_BACKEND"]) == "cpu"


def test_every_setting_is_in_the_example_and_in_the_documents() -> None:
    used = set().union(*(variables(file.read_text()) for file in [ROOT / "compose.yaml", *OVERLAYS]))
    example = (ROOT / ".env.example").read_text()
    named = set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE))
    assert used - named == {"PROMETHEUS_IMAGE", "GRAFANA_IMAGE", "DCGM_IMAGE", "DCGM_MEMORY"}
    assert named - used == {"COMPOSE_FILE", "COMPOSE_PROFILES"}
    for document in ("deploy.md", "deploy.zh-CN.md"):
        text = (ROOT / "docs" / document).read_text()
        assert {name for name in used if f"`{name}`" not in text} == set(), document


def test_the_defaults_of_the_example_are_those_of_the_compose_file() -> None:
    text = (ROOT / "compose.yaml").read_text() + (ROOT / "compose" / "keys.yaml").read_text()
    defaults = dict(re.findall(r"\$\{(\w+):?-([^}]*)\}", text))
    for line in (ROOT / ".env.example").read_text().splitlines():
        name, equals, said = line.removeprefix("# ").partition("=")
        if equals and name in defaults and name != "TORCH_BACKEND":
            assert said == defaults[name], name


def test_where_packages_and_models_come_from_can_be_set(base: dict[str, Any]) -> None:
    """And is not set at all otherwise: an empty HF_ENDPOINT or PIP_INDEX_URL would be an address that is none."""
    for name, service in base["services"].items():
        if "build" in service:
            args = service["build"]["args"]
            assert {key for key, said in args.items() if said is None} == {
                "PIP_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"
            }  # fmt: skip
        if name in SERVICES:
            assert service["environment"]["HF_ENDPOINT"] is None
    for file in DOCKERFILES:  # not every builder hands a stage's arguments on to those that are made of it
        for stage, text in stages(file).items():
            assert ("/build/scripts/image.py" in text or stage == "tools") == ("\nARG PIP_INDEX_URL\n" in text), stage


def test_what_is_mounted_is_there(base: dict[str, Any]) -> None:
    sources = [volume["source"] for service in base["services"].values() for volume in service.get("volumes", [])
               if isinstance(volume, dict)]  # fmt: skip
    sources += [each["file"] for each in [*base["configs"].values(), *base["secrets"].values()]]
    for source in sources:
        assert (ROOT / value(source)).exists(), source
    assert load_config(ROOT / value(base["configs"]["models"]["file"])).models


def test_prometheus_asks_every_service() -> None:
    jobs = {job["job_name"]: job for job in read(ROOT / "compose" / "prometheus" / "prometheus.yml")["scrape_configs"]}
    (names,) = jobs["quintet"]["dns_sd_configs"]
    assert set(names["names"]) == {"router", *SERVICES}


def test_grafana_gets_its_data_from_prometheus_and_its_dashboards_from_the_folder(base: dict[str, Any]) -> None:
    folder = ROOT / "compose" / "grafana" / "provisioning"
    (source,) = read(folder / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = read(folder / "dashboards" / "quintet.yml")["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    mounts = {volume["target"]: volume["source"] for volume in base["services"]["grafana"]["volumes"][:2]}
    home = Path(base["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / mounts[str(home.parent)] / home.name).is_file()


# Dockerfiles


def stages(file: Path) -> dict[str, str]:
    """The text of each stage by its name."""
    parts = [part for part in re.split(r"^FROM ", file.read_text(), flags=re.MULTILINE)[1:] if " AS " in part]
    return {part.splitlines()[0].split(" AS ")[-1]: part.split("\n\n# ")[0].strip() for part in parts}


def test_every_service_has_a_dockerfile() -> None:
    assert {file.parent.name for file in DOCKERFILES} == {"router", "chat", "vision", "tts", "embed"}


@pytest.mark.parametrize("stage", ["base", "tools", "common", "torch"])
def test_stages_that_are_shared_are_the_same_to_the_letter(stage: str) -> None:
    texts = [found[stage] for file in DOCKERFILES if stage in (found := stages(file))]
    assert len(texts) > 2
    assert len(set(texts)) == 1, "a stage that differs is built twice, and its layer is on disk twice"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.parent.name)
def test_only_what_needs_torch_is_built_on_it(file: Path) -> None:
    modules = (file.parent / f"quintet_{file.parent.name}").rglob("*.py")
    needs = any(re.search(r"^ *(import|from) torch\b", module.read_text(), re.MULTILINE) for module in modules)
    assert ("torch" in stages(file)) == needs
    assert stages(file)[file.parent.name].startswith(("torch" if needs else "common") + " AS ")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.parent.name)
def test_an_image_is_pinned_runs_as_nobody_and_can_be_asked_how_it_is(file: Path) -> None:
    text = file.read_text()
    assert re.findall(r"^ARG BASE=(.*)$", text, re.MULTILINE) == ["python:3.11-slim"]
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) <= {
        "${BASE}",
        "base",
        "common",
        "torch",
        file.parent.name,
    }
    assert "latest" not in text
    assert not re.search(r"pip install|apt-get|curl", text.partition("AS vllm")[0]), (
        "packages come by scripts/image.py, locked"
    )
    last = stages(file)[file.parent.name]
    assert "USER 10001:10001" in last
    assert "HEALTHCHECK" in last
    assert '"-m", "quintet_common.probe"' in last
    assert f'org.opencontainers.image.title="Quintet {file.parent.name}"' in last
    described = tomllib.loads(file.with_name("pyproject.toml").read_text())["project"]["description"]
    assert f'description="{described}"' in last


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(LAB / ".state" / "venv" / "bin"))
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, "--no-color", *map(str, DOCKERFILES)], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_compose_itself_can_read_every_combination() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no docker compose on this machine")
    for overlay in [None, *OVERLAYS]:
        files = ["-f", str(ROOT / "compose.yaml"), *(["-f", str(overlay)] if overlay else [])]
        command = [docker, "compose", *files, "--profile", "monitoring", "config", "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        for name, service in json.loads(done.stdout)["services"].items():
            devices = service["deploy"]["resources"].get("reservations", {}).get("devices")
            on_cpu = overlay is not None and overlay.name == "cpu.yaml"
            assert bool(devices) == (name in (*SERVICES, "dcgm") and not on_cpu)
