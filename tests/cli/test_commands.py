"""The commands that start nothing: check, --version, options, and what they say when something is wrong."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from quintet import __version__
from quintet.checks import load_changed, load_startable
from quintet.commands.serve import chosen_kinds
from quintet.main import main
from quintet.supervisor.plan import ENDPOINTS, KINDS
from quintet.supervisor.sockets import ListenError, listen, listen_near, port_of
from quintet.zlai import _flag
from quintet_common import wheels, yaml_source
from quintet_common.addresses import port_number
from quintet_common.models_yml import Config, ConfigError, parse_config
from quintet_common.values import EMBEDDED_KINDS

ROOT = Path(__file__).resolve().parents[2]


def status_of(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--version") == 0
    assert capsys.readouterr().out == f"quintet {__version__}\n"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    out = capsys.readouterr().out
    assert all(f"\n    {name} " in out for name in ("serve", "check", "models", "run", "router"))


def test_help_is_what_one_gets_who_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("help") == 0
    assert status_of() == 2
    printed = capsys.readouterr()
    assert printed.out == printed.err
    assert "COMMAND\n" in printed.out


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("chek", "there is no command 'chek'; did you mean 'check'?"),
        ("frobnicate", "there is no command 'frobnicate'; `quintet --help` lists them."),
        ("--verison", "COMMAND comes first, and --verison is none"),
    ],
)
def test_a_command_that_there_is_not_is_told(capsys: pytest.CaptureFixture[str], word: str, says: str) -> None:
    assert status_of(word) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"quintet: error: {says}"


def test_check_refuses_what_serve_would(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "models.yml"
    file.write_text("models: []")
    assert (status_of("check", str(file)), status_of("serve", str(file))) == (1, 2)
    said = f"{file}: there is nothing to serve: no models and no upstreams.\n"
    assert capsys.readouterr().err == said + said


@pytest.mark.parametrize("host", ["nobody.invalid", "256.1.1.1", "192.0.2.1"])
def test_an_address_of_another_machine_is_told(host: str) -> None:
    with pytest.raises(ListenError, match=f"^'{host}' is not an address of this machine; use --host 127.0.0.1 or"):
        listen(host, 0)


def test_check_prints_the_plan_of_the_embedded_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("check", str(ROOT / "models.yml")) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[1] for row in rows] == ["chat", "multimodal", "image", "tts", "embedding"]
    assert all(row.endswith("yes") for row in rows)


def test_check_names_every_directory_that_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "models.yml"
    (tmp_path / "there").mkdir()
    file.write_text(
        "models:\n"
        "  - {id: a, kind: chat, path: ./gone}\n"
        "  - {id: b, kind: chat, path: /nowhere/at/all}\n"
        "  - {id: c, kind: chat, path: ./there}\n"
        "  - {id: d, kind: chat, path: Qwen/Qwen2-7B-Instruct}\n"
    )
    assert status_of("check", str(file)) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{file}:2: the model 'a' is not there: {tmp_path}/gone does not exist.",
        f"{file}:3: the model 'b' is not there: /nowhere/at/all does not exist.",
        f"{file}:4: c: {tmp_path}/there has no config.json, so it is no folder of a model, or not all of one.",
    ]


def test_check_says_what_a_hub_is_to_give_and_which(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    file = tmp_path / "models.yml"
    file.write_text("models: [{id: d, kind: chat, path: Qwen/Qwen2-7B-Instruct}]")
    assert status_of("check", str(file)) == 0
    *_, row, where = capsys.readouterr().out.splitlines()
    assert " Qwen/Qwen2-7B-Instruct (not here yet) " in row
    assert where.startswith(
        "(not here yet): fetched from 127.0.0.1:9 at start, or before by `quintet pull`; HF_ENDPOINT"
    )
    (tmp_path / "cache" / "models--Qwen--Qwen2-7B-Instruct" / "snapshots" / "abc").mkdir(parents=True)
    assert status_of("check", str(file)) == 0
    assert "not here" not in capsys.readouterr().out


def test_check_names_embedded_models_and_key_files_that_cannot_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "models.yml"
    file.write_text(
        "models:\n"
        "  - {id: a, kind: chat, path: 'embedded:smollm2'}\n"
        "  - id: b\n    kind: chat\n    path: embedded:hibari\n"
        "router:\n  keys: nokeys.yml\n"
    )
    assert status_of("check", str(file)) == 1
    found = capsys.readouterr().err.splitlines()
    assert found == [
        f"{file}:2: path: there is no embedded model 'smollm2'; it is one of {', '.join(EMBEDDED_KINDS)}.",
        f"{file}:5: path: embedded:hibari is of kind 'tts', not 'chat'.",
        f"{file}:7: keys: {tmp_path}/nokeys.yml does not exist; `quintet keys add` makes it.",
    ]
    assert status_of("serve", str(file)) == 2
    assert capsys.readouterr().err.splitlines() == found


def test_check_names_the_command_for_an_embedded_model_whose_wheels_are_not_installed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(wheels.EMBEDDED) == set(EMBEDDED_KINDS)
    file = tmp_path / "models.yml"
    rows = [f"  - {{id: {name}, kind: {kind}, path: 'embedded:{name}'}}" for name, kind in EMBEDDED_KINDS.items()]
    file.write_text("\n".join(["models:", *rows]))
    gone = {module for needed in wheels.EMBEDDED.values() for module in needed.modules}
    monkeypatch.setattr(wheels, "find_spec", lambda name: None if name in gone else find_spec(name))
    assert status_of("check", str(file)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(rows)
    for number, ((name, needed), line) in enumerate(zip(wheels.EMBEDDED.items(), lines, strict=True), 2):
        assert line.startswith(f"{file}:{number}: path: embedded:{name} needs the Python package")
        assert all(module in line for module in needed.modules)
        assert line.endswith(f"services/{needed.service.removeprefix('quintet-')}[{needed.extra}]'")
    with pytest.raises(ConfigError, match="needs the Python package"):
        load_startable(file, KINDS)  # nothing is left to start
    with pytest.raises(ConfigError, match="needs the Python package"):
        load_changed(file, Config())
    monkeypatch.setattr(wheels, "find_spec", lambda _name: None)  # the services are elsewhere
    assert status_of("check", str(file)) == 0


def test_check_parses_the_file_no_oftener_for_more_mistakes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    load = yaml_source.yaml.load
    monkeypatch.setattr(yaml_source.yaml, "load", lambda text, loader: parsed.append(text) or load(text, loader))
    file = tmp_path / "models.yml"
    file.write_text("models:\n" + "".join(f"  - {{id: m{n}, kind: chat, path: ./m{n}}}\n" for n in range(50)))
    assert status_of("check", str(file)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{file}:{number}" for number in range(2, 52)]
    assert len(parsed) == 2


def test_check_says_what_is_wrong_with_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "models.yml"
    file.write_text("models:\n  - {id: a, knd: chat, path: x}\n")
    assert status_of("check", str(file)) == 1
    assert capsys.readouterr().err == f"{file}:2: unknown key 'knd'; did you mean 'kind'?\n"


@pytest.mark.parametrize("command", [("models",), ("run", "m", "hello")])
def test_no_endpoint_is_one_line(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    with listen("127.0.0.1", 0) as taken:
        free = port_of(taken)
    assert status_of(*command, f"--url=http://127.0.0.1:{free}") == 1
    error = capsys.readouterr().err
    place = "Another place: --url or QUINTET_URL."
    assert error == f"Nothing answers at http://127.0.0.1:{free}. Is `quintet serve` running? {place}\n"


class Locked(BaseHTTPRequestHandler):
    """An endpoint that wants a key, and does not know the one that it gets."""

    def do_GET(self) -> None:
        body = b'{"error": {"message": "Incorrect API key.", "code": "invalid_api_key"}}'
        self.send_response(401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("command", [("models",), ("run", "m", "hello")])
@pytest.mark.parametrize(
    ("key", "says"),
    [("", "The endpoint asks for an API key: set OPENAI_API_KEY to one."), ("sk-old", "Incorrect API key.")],
)
def test_an_endpoint_with_keys_says_where_one_is_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: str, says: str, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert status_of(*command, f"--url=http://127.0.0.1:{server.server_port}") == 1
        server.shutdown()
    assert capsys.readouterr().err == f"{says}\n"


@pytest.mark.parametrize("url", ["::", "http://[::1", "http://a:b", "a:0", ""])
def test_an_address_that_is_none_is_told(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert status_of("models", "--url", url) == 2
    assert f"{url!r} is not an address like http://127.0.0.1:8000\n" in capsys.readouterr().err


def test_only_takes_kinds_and_services_with_commas_or_spaces() -> None:
    assert chosen_kinds(None) == KINDS
    assert chosen_kinds(["chat,tts"]) == {"chat", "tts"}
    assert chosen_kinds(["embed", "vision"]) == {"embedding", "rerank", "image"}
    assert chosen_kinds(["chat,", "tts,"]) == {"chat", "tts"}
    with pytest.raises(ConfigError, match=r"'caht' is not one of chat, embedding, .*; did you mean 'chat'"):
        chosen_kinds(["caht"])


@pytest.mark.parametrize(
    ("word", "kinds"),
    [("speech", "'tts'"), ("Images", "'image'"), ("embeddings", "'embedding'"), ("reranker", "'rerank'")],
)
def test_what_people_call_a_kind_is_understood_wherever_one_is_named(word: str, kinds: str) -> None:
    with pytest.raises(ConfigError, match=rf"did you mean {kinds}\?$"):
        chosen_kinds([word])
    for text in (
        f"models: [{{id: a, path: x, kind: {word}}}]",
        f"models_config: [{{model_name: a, model_type: {word}}}]",
    ):
        with pytest.raises(ConfigError, match=rf"did you mean {kinds}\?$"):
            parse_config(text, Path("models.yml"))


def test_check_names_the_keys_of_zlai_in_its_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    header = json.dumps({"a.weight": {"dtype": "F16", "shape": [1000], "data_offsets": [0, 2000]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2000))
    file = tmp_path / "models_config.yml"
    file.write_text(
        "models_config:\n- {model_name: a, model_path: embedded:hibari, model_type: completion}\n"
        "- model_name: b\n  model_type: completion\n  model_path: ./m\n  max_memory: {cpu: 1KB}\n"
    )
    assert status_of("check", str(file)) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{file}:2: model_path: embedded:hibari is of kind 'tts', not 'chat'.",
        f"{file}:6: the weights of 'b' need 2 kB, but max_memory grants 1 kB.",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
def test_output_that_has_no_room_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "models.yml"
    file.write_text("models: [{id: e, kind: embedding, path: 'embedded:all-minilm-l6-v2'}]")
    command = [sys.executable, "-c", "from quintet.main import main; main()", "check", str(file)]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "The output cannot be written: No space left on device.\n")


def test_ctrl_c_while_modules_are_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupted)
    assert status_of("check") == 130
    assert status_of("router") == 130


def test_every_kind_has_a_service_and_an_endpoint() -> None:
    assert set(ENDPOINTS) == KINDS


@pytest.mark.parametrize("text", ["70000", "-1", "http"])
def test_a_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        port_number(text)


@pytest.mark.parametrize(("text", "value"), [("0", False), ("1", True), ("True", True), ("false", False)])
def test_zlai_s_reload_is_a_number(text: str, value: bool) -> None:
    assert _flag(text) is value


def test_a_service_has_the_port_after_the_router_s_or_any_that_is_free() -> None:
    with listen("127.0.0.1", 0) as router, listen_near(port_of(router), 1) as first:
        with listen_near(port_of(router), 1) as second:
            assert port_of(second) not in (port_of(router), port_of(first))
        with listen_near(65535, 1) as beyond:
            assert port_of(beyond) > 0
