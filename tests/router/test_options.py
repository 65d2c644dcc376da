"""What the router is started with: the section of models.yml, the command line, and what it says of them."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from quintet_common.models_yml import ConfigError, load_config
from quintet_router import cli
from quintet_router.access import keyfile
from quintet_router.access.gate import Gate
from router.test_keys import bearer, key
from router.test_process import FakeUpstream, router_process


def config_file(folder: Path, section: str) -> Path:
    file = folder / "models.yml"
    file.write_text(f"upstreams: [{{url: 'http://127.0.0.1:1'}}]\nrouter:\n{section}")
    return file


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    file = config_file(tmp_path, "  {max_concurrent: 5, load_wait: 0, drain_delay: 3, open_metrics: false}")
    options = cli._parser().parse_args(["--max-concurrent", "7", "--queue-wait", "2"])
    admission = cli._admission(options, load_config(file))
    settings = cli._settings(options, admission)
    assert (settings.max_concurrent, settings.queue_wait, settings.load_wait) == (7, 2.0, 0.0)
    assert (settings.open_metrics, settings.max_waiting, admission.drain_delay) == (False, 256, 3.0)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--max-body", "0", "'0' is not a whole number, at least 1"),
        ("--max-concurrent", "two", "'two' is not a whole number, at least 1"),
        ("--max-waiting", "-1", "'-1' is not a whole number, at least 0"),
        ("--queue-wait", "0", "'0' is not a number above 0"),
        ("--dns-seconds", "0", "'0' is not a number above 0"),
        ("--first-byte-timeout", "soon", "'soon' is not a number above 0"),
        ("--load-wait", "nan", "'nan' is not a number, at least 0"),
        ("--grace", "-5", "'-5' is not a number, at least 0"),
        ("--retry-share", "-0.1", "'-0.1' is not a number, at least 0"),
    ],
)
def test_an_option_has_the_limits_of_its_key(
    option: str, value: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli._parser().parse_args([option, value])
    assert capsys.readouterr().err.endswith(f"error: argument {option}: {says}\n")


def test_a_relative_file_of_keys_is_beside_models_yml(tmp_path: Path) -> None:
    assert load_config(config_file(tmp_path, "  keys: k.yml")).router.keys == str(tmp_path / "k.yml")


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("  keyz: k.yml", "{file}:3: unknown key 'keyz'; did you mean 'keys'?"),
        ("  max_concurrent: 0", "{file}:3: max_concurrent: expected a whole number >= 1."),
        (
            "  cors:\n  - https://a\n  - b.example",
            "{file}:5: cors: 'b.example' is not an origin like https://chat.example.com, nor '*'.",
        ),
        ("  load_wait: soon", "{file}:3: load_wait: expected a number, got text."),
    ],
)
def test_a_mistake_in_the_section_is_one_line(tmp_path: Path, section: str, line: str) -> None:
    file = config_file(tmp_path, section)
    with pytest.raises(ConfigError) as wrong:
        load_config(file)
    assert str(wrong.value) == line.format(file=file)


@pytest.mark.parametrize(
    ("option", "package", "extra"),
    [
        (("--redis", "redis://127.0.0.1:1"), "redis", "redis"),
        (("--traces", "http://127.0.0.1:1"), "opentelemetry.exporter.otlp.proto.http.trace_exporter", "otel"),
    ],
)
def test_an_extra_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, option: tuple[str, str], package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=rf"pip install .*'services/router\[{extra}\]'"):
        cli.main(["--upstream", "http://127.0.0.1:1", *option])


def test_the_environment_can_name_the_keys_and_what_is_set_to_nothing_names_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value, keys in (("/run/secrets/keys", "/run/secrets/keys"), ("", None)):
        monkeypatch.setenv("QUINTET_KEYS", value)
        assert cli._parser().parse_args([]).keys == keys
    assert cli._parser().parse_args(["--keys", "k.yml"]).keys == "k.yml"


def test_a_file_of_keys_that_is_wrong_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"none\.yml: cannot be read"):
        cli.main(["--upstream", "http://127.0.0.1:1", "--keys", str(tmp_path / "none.yml")])


async def test_keys_of_the_file_are_in_force_and_read_again_on_sighup(tmp_path: Path) -> None:
    upstream = FakeUpstream()
    await upstream.start()
    keyfile.write(tmp_path / "keys.yml", [key("a")])
    (tmp_path / "models.yml").write_text(f"upstreams: [{{url: '{upstream.url}'}}]\nrouter: {{keys: keys.yml}}\n")
    async with router_process("--config", str(tmp_path / "models.yml")) as (_, door):
        assert (await door.chat()).status == 401
        assert (await door.chat(bearer("a"))).status == 200
    await upstream.stop()


@pytest.mark.parametrize(
    ("host", "locked", "loud"), [("0.0.0.0", False, True), ("127.0.0.1", False, False), ("0.0.0.0", True, False)]
)
def test_open_to_all_without_keys_is_said_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, host: str, locked: bool, loud: bool
) -> None:
    keyfile.write(tmp_path / "keys.yml", [key("a")])
    gate = Gate(cli.Keyring(tmp_path / "keys.yml")) if locked else Gate()
    with socket.socket() as listening:
        listening.bind((host, 0))
        for arguments in (["--host", host], ["--fd", str(listening.fileno())]):
            caplog.clear()
            cli.warn_if_open(cli._parser().parse_args(arguments), gate)
            assert [record.levelname for record in caplog.records] == (["WARNING"] if loud else [])
            assert ("NO API KEYS" in caplog.text) is loud
        os.fstat(listening.fileno())  # was only looked at
