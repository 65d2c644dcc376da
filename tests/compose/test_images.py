"""The images: what they share, what they carry and what they do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from docker_stack import ROOT, TAG, Project, docker

pytestmark = pytest.mark.docker

CPU = [ROOT / "compose.yaml", ROOT / "compose" / "cpu.yaml"]
NAMES = {name: f"quintet/{name}:{TAG}-cpu" for name in ("chat", "vision", "tts", "embed")} | {
    "router": f"quintet/router:{TAG}"
}
TORCH = ("chat", "vision", "tts", "embed")


@pytest.fixture(scope="module")
def images(stack: Project) -> dict[str, dict[str, Any]]:
    assert stack.url
    return {name: json.loads(docker("image", "inspect", tag))[0] for name, tag in NAMES.items()}


def in_image(name: str, *command: str) -> str:
    return docker(
        "run", "--rm", "--network", "none", "--read-only", "--entrypoint", command[0], NAMES[name], *command[1:]
    )


def test_torch_is_one_layer_on_disk_for_all_that_need_it(images: dict[str, dict[str, Any]]) -> None:
    layers = {name: image["RootFS"]["Layers"] for name, image in images.items()}
    common = [each[0] for each in zip(*layers.values(), strict=False) if len(set(each)) == 1]
    heavy = [each[0] for each in zip(*(layers[name] for name in TORCH), strict=False) if len(set(each)) == 1]
    assert len(common) >= 3, "the base, the user and what every service is made of"
    assert len(heavy) > len(common)
    sizes = {name: image["Size"] / 1e6 for name, image in images.items()}
    assert sizes["router"] < 350, sizes
    assert max(sizes.values()) < 2600, sizes


@pytest.mark.parametrize("name", NAMES)
def test_an_image_says_what_it_is_and_does_not_run_as_root(images: dict[str, dict[str, Any]], name: str) -> None:
    config = images[name]["Config"]
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-P", "-m", "quintet_common.probe"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels.keys() >= {"title", "description", "licenses", "version", "revision"}


LISTING = """
import importlib.metadata, importlib.util, json, pathlib, re
packages = {re.sub("[-_.]+", "-", each.name.lower()): each.version for each in importlib.metadata.distributions()}
own = pathlib.Path(importlib.util.find_spec("quintet_common").origin).parent
print(json.dumps([packages, bool(list(own.glob("__pycache__/app.*.pyc")))]))
"""


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_what_is_locked_and_nothing_to_install_with(images: dict[str, dict[str, Any]], name: str) -> None:
    assert images
    packages, compiled = json.loads(in_image(name, "python", "-P", "-c", LISTING))
    assert compiled, "the file system is read-only: what is not compiled now is compiled at every start"
    lock = (ROOT / "requirements.lock").read_text()
    others = {
        f"{package}=={version}" for package, version in packages.items() if not package.startswith(("quintet", "torch"))
    }
    assert others <= {line.split(" ;")[0] for line in lock.splitlines()}
    assert not {"uv", "pip", "hatchling", "pytest", "mypy"} & packages.keys()
    assert ("torch" in packages) == (name in TORCH)
    assert packages.keys() >= {"quintet-common", f"quintet-{name}"}
