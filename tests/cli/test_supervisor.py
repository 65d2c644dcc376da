"""``quintet serve`` with stand-in services: what it prints, what it survives, what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

from cli_served import Served, alive

Serve = Callable[..., Served]


def url_of(served: Served) -> str:
    found = re.search(r"Quintet is up: (http://\S+)/v1", served.text())
    assert found, served.text()
    return found[1]


def models_at(url: str) -> set[str]:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
        return {card["id"] for card in json.load(answer)["data"]}


def test_it_starts_the_services_that_have_models_and_prints_the_table(serve: Serve) -> None:
    served = serve()
    served.until_said("Quintet is up")
    text = served.text()
    assert re.search(r"^small-talk +chat +standin +POST /v1/chat/completions +ready$", text, re.M)
    assert re.search(r"^小向量 +embedding +standin +POST /v1/embeddings +ready$", text, re.M)
    assert models_at(url_of(served)) == {"small-talk", "小向量"}
    assert not served.starts("tts"), "a service without models is not started"


def test_the_terminal_has_warnings_and_the_log_file_has_all(serve: Serve) -> None:
    served = serve()
    served.until_said("Quintet is up")
    assert "chat: a line that matters" in served.text()
    assert "unimportant" not in served.text()
    log = next(served.folder.glob("cache/quintet/logs/*/chat.log")).read_text()
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d INFO standin an unimportant line$", log, re.M)


def test_the_log_of_the_last_run_is_kept(serve: Serve, house: Path) -> None:
    logs = house / "logs"
    logs.mkdir()
    for name in ("chat.log", "tts.log", "chat.log.1", "others.log"):
        (logs / name).write_text(f"{name} of before\n")
    served = serve("--logs", str(logs))
    served.until_said("Quintet is up")
    assert (logs / "chat.log.1").read_text() == "chat.log of before\n"
    assert (logs / "tts.log.1").read_text() == "tts.log of before\n"
    assert (logs / "others.log").exists(), "what is not ours is left alone"
    os.kill(served.starts("chat")[0], signal.SIGKILL)
    served.until(lambda: (logs / "chat.log").read_text().count("an unimportant line") == 2)
    assert "of before" not in (logs / "chat.log").read_text()
    assert not (logs / "tts.log").exists()


def test_ctrl_c_stops_all_and_exits_with_0(serve: Serve) -> None:
    served = serve()
    served.until_said("Quintet is up")
    assert served.stop(signal.SIGINT) == 0
    assert [pid for pid in served.everything() if alive(pid)] == []
    assert "Traceback" not in served.text()


def test_sigterm_while_starting_leaves_nothing_behind(serve: Serve) -> None:
    served = serve()
    served.until(lambda: served.starts("chat"))
    assert served.stop(signal.SIGTERM) == 0
    assert [pid for pid in served.everything() if alive(pid)] == []


def test_one_ctrl_c_is_enough_for_a_service_that_has_begun_something(serve: Serve, house: Path) -> None:
    (house / "chat.deaf").touch()
    served = serve()
    served.until_said("Quintet is up")
    assert served.stop(signal.SIGINT, seconds=5.5) == 0
    assert [pid for pid in served.everything() if alive(pid)] == []


def test_a_second_ctrl_c_kills_a_service_that_does_not_stop(serve: Serve, house: Path) -> None:
    (house / "chat.deaf").touch()
    served = serve()
    served.until_said("Quintet is up")
    served.process.send_signal(signal.SIGINT)
    served.until_said("Stopping")
    assert served.stop(signal.SIGINT, seconds=5.5) == 0
    assert [pid for pid in served.everything() if alive(pid)] == []


def test_a_killed_supervisor_takes_everything_with_it(serve: Serve) -> None:
    served = serve()
    served.until_said("Quintet is up")
    served.stop(signal.SIGKILL)
    services = [*served.starts("chat"), *served.starts("embed"), *served.starts("router")]
    served.until(lambda: not any(alive(pid) for pid in services))
    for name in ("chat-worker", "embed-worker", "router-worker"):  # stand-ins do not watch theirs as real services do
        os.kill(served.starts(name)[0], signal.SIGKILL)


def test_a_service_that_dies_is_said_and_started_again_on_its_address(serve: Serve) -> None:
    served = serve()
    served.until_said("Quintet is up")
    os.kill(served.starts("embed")[0], signal.SIGKILL)
    served.until(lambda: len(served.starts("embed")) == 2)
    assert "embed ended (killed by SIGKILL); starting it again in 0.5 s" in served.text()
    assert models_at(url_of(served)) == {"small-talk", "小向量"}
    assert not alive(served.starts("embed-worker")[0]), "what the dead one started is gone"


def test_a_service_that_cannot_start_does_not_keep_the_others_waiting(serve: Serve, house: Path) -> None:
    (house / "embed.crash").touch()
    served = serve()
    served.until_said("Quintet is up")
    assert re.search(r"小向量 .* failed: .*told to crash", served.text())
    assert re.search(r"small-talk .* ready", served.text())


def test_nothing_is_up_while_the_router_cannot_start_and_its_last_line_says_why(serve: Serve, house: Path) -> None:
    (house / "router.crash").write_text("the port of an upstream is missing")
    served = serve()
    served.until_said("router ended (exit status 1): the port of an upstream is missing; starting it again", times=3)
    assert "Quintet is up" not in served.text()
    (house / "router.crash").unlink()
    served.until_said("Quintet is up")


def test_only_leaves_the_other_kinds_out(serve: Serve) -> None:
    served = serve("--only", "embedding")
    served.until_said("Quintet is up")
    assert models_at(url_of(served)) == {"小向量"}


def test_reload_starts_and_stops_services_as_models_yml_says(serve: Serve, house: Path) -> None:
    served = serve("--reload")
    served.until_said("Quintet is up")
    url = url_of(served)
    file = house / "models.yml"
    file.write_text(file.read_text() + '  - {id: second, kind: chat, path: "embedded:smollm2-135m-instruct"}\n')
    served.until_said("Quintet is up", times=2)
    assert models_at(url) == {"small-talk", "second", "小向量"}
    assert len(served.starts("chat")) == 1, "the running service reads the file itself"
    file.write_text('models:\n  - {id: voice, kind: tts, path: "embedded:hibari"}\n')
    served.until_said("Quintet is up", times=3)
    assert models_at(url) == {"voice"}
    served.until(lambda: not alive(served.starts("chat")[0]))


def test_reload_refuses_a_wrong_file_whole(serve: Serve, house: Path) -> None:
    served = serve("--reload")
    served.until_said("Quintet is up")
    wrong = "  - {id: a, kind: chta, path: p}\n  - {id: b, kind: tts, path: 'embedded:hibari', engine_args: {x: 1}}\n"
    file = house / "models.yml"
    file.write_text(file.read_text() + wrong)
    served.until_said("Not reloaded, what runs goes on:")
    assert "kind: 'chta' is not one of" in served.text()
    assert "engine_args: x: unknown key; it takes none." in served.text()
    assert models_at(url_of(served)) == {"small-talk", "小向量"}


def test_a_busy_port_is_one_line_with_a_free_one(house: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        served = Served(house, ["serve", f"--port={port}"])
        assert served.process.wait(60) == 1
    said = re.fullmatch(
        rf"Port {port} is in use by another program; choose another with --port \(make up PORT=(\d+)\)\.\n",
        served.text(),
    )
    assert said, served.text()
    assert int(said[1]) > port


def test_a_missing_models_yml_is_one_line(house: Path) -> None:
    served = Served(house, ["serve", "none.yml"])
    assert served.process.wait(60) == 2
    assert served.text() == "none.yml: cannot be read: No such file or directory.\n"


def test_an_unknown_key_is_one_line_with_a_suggestion(house: Path) -> None:
    (house / "models.yml").write_text("models:\n  - id: a\n    kind: chat\n    pth: x\n    path: embedded:x\n")
    served = Served(house, ["serve"])
    assert served.process.wait(60) == 2
    assert served.text() == "models.yml:4: unknown key 'pth'; did you mean 'path'?\n"


def test_a_model_directory_that_is_not_there_is_one_line(house: Path) -> None:
    (house / "models.yml").write_text("models:\n  - {id: a, kind: chat, path: ./weights}\n")
    served = Served(house, ["serve"])
    assert served.process.wait(60) == 2
    assert served.text() == f"models.yml:2: the model 'a' is not there: {house}/weights does not exist.\n"


def test_a_model_that_cannot_be_loaded_is_said_and_the_others_are_started(serve: Serve, house: Path) -> None:
    file = house / "models.yml"
    file.write_text(file.read_text() + "  - {id: a, kind: chat, path: ./weights}\n")
    served = serve()
    served.until_said("Quintet is up")
    assert served.text().splitlines()[:3] == [
        f"models.yml:4: the model 'a' is not there: {house}/weights does not exist.",
        "1 of 3 models will be failed until that is changed. The others are started.",
        "Starting 2 models from models.yml …",
    ]


def test_a_pipe_is_no_models_yml(house: Path) -> None:
    os.mkfifo(house / "pipe")
    served = Served(house, ["serve", "pipe"])
    assert served.process.wait(60) == 2
    assert served.text() == "pipe: is a pipe or a device; each service reads it, so it has to be a file.\n"


def test_a_log_that_cannot_be_kept_is_said_and_stops_nothing(serve: Serve, house: Path) -> None:
    logs = house / "logs"
    (logs / "embed.log").mkdir(parents=True)
    (logs / "chat.log").symlink_to("/dev/full")
    served = serve("--logs", str(logs))
    served.until_said("Quintet is up")
    assert f"No log of embed is kept: {logs}/embed.log: Is a directory.\n" in served.text()
    assert f"The log of chat ends here: {logs}/chat.log: No space left on device.\n" in served.text()
    assert "chat: a line that matters" in served.text()
    assert served.stop(signal.SIGINT) == 0
    assert "Traceback" not in served.text()


def test_models_that_are_left_out_are_not_looked_at(serve: Serve, house: Path) -> None:
    file = house / "models.yml"
    file.write_text(file.read_text() + "  - {id: a, kind: chat, path: ./weights}\n")
    served = serve("--only", "embedding")
    served.until_said("Quintet is up")
    assert "weights" not in served.text()


def test_where_all_that_is_asked_for_is_wrong_nothing_starts(house: Path) -> None:
    file = house / "models.yml"
    file.write_text(file.read_text() + "  - {id: a, kind: tts, path: ./weights}\n")
    served = Served(house, ["serve", "--only", "tts"])
    assert served.process.wait(60) == 2
    assert served.text() == f"models.yml:4: the model 'a' is not there: {house}/weights does not exist.\n"


def test_reload_refuses_what_it_would_break_and_not_what_was_broken_before(serve: Serve, house: Path) -> None:
    file = house / "models.yml"
    before = file.read_text() + "  - {id: a, kind: chat, path: ./weights}\n"
    file.write_text(before)
    served = serve("--reload")
    served.until_said("Quintet is up")
    file.write_text(before + "  - {id: b, kind: chat, path: ./others}\n")
    served.until_said("Not reloaded, what runs goes on: ")
    assert f"{file.resolve()}:5: the model 'b' is not there: {house}/others does not exist.\n" in served.text()
    file.write_text(before + "  - {id: b, kind: chat, path: 'embedded:smollm2-135m-instruct'}\n")
    served.until_said("Quintet is up", times=2)
    assert models_at(url_of(served)) == {"small-talk", "小向量", "a", "b"}


def test_zlai_models_takes_zlai_s_options_and_file(serve: Serve, house: Path) -> None:
    weights = house / "Qwen2-0.5B-Instruct"
    weights.mkdir()
    (weights / "config.json").write_text('{"model_type": "qwen2"}')
    (weights / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (weights / "tokenizer.json").touch()
    (house / "models_config.yml").write_text(
        f"models_config:\n  - model_name: Qwen2-0.5B-Instruct\n    model_path: {weights}\n"
        '    model_type: completion\n    load_method: load_qwen2\n    max_memory:\n      0: "2GB"\n'
    )
    served = serve("--config_path", "./models_config.yml", "--reload=0", "--host", "localhost", command="quintet.zlai")
    served.until_said("Quintet is up")
    assert models_at(url_of(served)) == {"Qwen2-0.5B-Instruct"}
