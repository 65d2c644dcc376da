"""The documents are true: their links lead somewhere, what they show works, and every key has its line."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import msgspec
import pytest
from docs.markdown import DOCUMENTS, ROOT, destination, links
from quintet.commands.serve import add_arguments
from quintet.main import COMMANDS
from quintet_common.models_yml import ModelSpec, RouterSpec, SamplingDefaults, UpstreamSpec, load_config, parse_config

README = ROOT / "README.md"


def blocks(file: Path, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    for target in links(file.read_text()):
        destination(file, target)


@pytest.mark.parametrize("kind", [ModelSpec, SamplingDefaults, UpstreamSpec, RouterSpec])
def test_config_md_has_every_key_with_its_default(kind: type[msgspec.Struct]) -> None:
    text = (ROOT / "docs" / "config.md").read_text()
    for field in msgspec.structs.fields(kind):
        row = re.search(rf"^\| `{field.encode_name}` \|.*$", text, re.MULTILINE)
        assert row, field.encode_name
        if field.required:
            assert "needed" in row[0]
        elif isinstance(field.default, (int, str)) and field.default != "":
            assert f"`{str(field.default).lower()}`" in row[0], row[0]


def test_the_yaml_of_the_readme_is_valid() -> None:
    (shown,) = blocks(README, "yaml")
    config = parse_config(shown, ROOT / "models.yml")
    assert [spec.kind for spec in config.models] == ["chat", "embedding"]


def test_the_readme_shows_the_embedded_models_of_models_yml() -> None:
    table = README.read_text()
    for spec in load_config(ROOT / "models.yml").models:
        assert re.search(rf"^\| \w+ \| `{re.escape(spec.id)}` \|", table, re.MULTILINE), spec.id
        assert f"`{spec.path}`" in (ROOT / "docs" / "config.md").read_text()


def test_the_commands_that_are_shown_exist() -> None:
    shell = "\n".join(blocks(README, "bash"))
    targets = set(re.findall(r"^make ([a-z-]+)", shell, re.MULTILINE))
    assert targets == {"up", "test"}, "a newcomer needs two commands"
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"bin/quintet (\w+)", shell)) <= COMMANDS.keys()


def test_the_options_of_serve_that_are_shown_exist() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    shown = re.findall(r"quintet serve [^\n`]*", README.read_text())
    assert {option for line in shown for option in re.findall(r"--[a-z-]+", line)} <= known


def test_no_document_names_a_registry() -> None:
    registries = "|".join(["pypi" + r"\.org", "python" + "hosted", r"download\.pytorch", r"registry\.npm"])
    for file in [*DOCUMENTS, ROOT / "Makefile", *(ROOT / "scripts").glob("*.py")]:
        assert not re.search(registries, file.read_text()), file
