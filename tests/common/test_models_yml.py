"""models.yml: what is accepted, and that each mistake is one line with its place in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from quintet_common.models_yml import ConfigError, idle_seconds, load_config, load_upstreams, parse_config

FILE = Path("models.yml")


def test_a_whole_entry(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    file = tmp_path / "models.yml"
    file.write_text(
        """
models:
  - id: qwen2-7b
    aliases: [Qwen2-7B-Instruct]
    kind: chat
    path: ./weights
    memory: {0: 20GB, "1": 8GB, cpu: 8GB}
    keep: 10m idle
    default: true
"""
    )
    (spec,) = load_config(file).models
    assert spec.names == ["qwen2-7b", "Qwen2-7B-Instruct"]
    assert spec.path == str(tmp_path / "weights")
    assert spec.memory == {0: "20GB", 1: "8GB", "cpu": "8GB"}
    assert idle_seconds(spec.keep) == 600
    assert spec.default


def test_a_folder_of_loras_is_found_from_the_file(tmp_path: Path) -> None:
    text = "models: [{id: k, kind: image, path: a/b, engine_args: {loras: styles}}]"
    (spec,) = parse_config(text, tmp_path / "models.yml").models
    assert spec.engine_args == {"loras": str(tmp_path / "styles")}


def test_a_folder_in_models_is_one_also_when_it_is_not_there(tmp_path: Path) -> None:
    (spec,) = parse_config("models: [{id: a, kind: chat, path: models/qwn2}]", tmp_path / "models.yml").models
    assert spec.path == str(tmp_path / "models" / "qwn2")


def test_a_tab_is_called_one() -> None:
    with pytest.raises(ConfigError, match=r"models.yml:2: not valid YAML: a tab where only spaces may be\."):
        parse_config("models:\n\t- id: a\n", FILE)


def test_embedded_and_hub_paths_stay_as_they_are() -> None:
    text = "models:\n- {id: a, kind: tts, path: 'embedded:hibari'}\n- {id: b, kind: chat, path: Qwen/Qwen2-7B-Instruct}"
    first, second = parse_config(text, FILE).models
    assert first.embedded == "hibari"
    assert second.embedded is None
    assert second.path == "Qwen/Qwen2-7B-Instruct"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing", "models.yml: there is nothing in it; it begins with 'models:'."),
        ("[]", "models.yml:1: expected a mapping with the key 'models'."),
        ("models: [\n", "models.yml:2: not valid YAML: expected the node content, but found '<stream end>'."),
        ("models: []\nrouter: {}\nmodels: []", "models.yml:3: the key 'models' is on line 1 already."),
        (
            "models:\n- id: a\n  kind: chat\n  path: x\n  id: b",
            "models.yml:5: the key 'id' is on line 2 already.",
        ),
        ("models: &m\n- *m", "models.yml:1: models[0]: expected keys with values, got a list."),
        (
            "models:\n- {id: a, kind: chat, path: x, max_batch: 0}",
            "models.yml:2: max_batch must be at least 1.",
        ),
        ("model:\n- id: a", "models.yml:1: unknown key 'model'; did you mean 'models'?"),
        (
            "models:\n- id: a\n  kind: chat\n  path: x\n  alias: [b]",
            "models.yml:5: unknown key 'alias'; did you mean 'aliases'?",
        ),
        (
            "models:\n- id: a\n  kind: chat\n  path: x\n  sampling: {temprature: 1}",
            "models.yml:5: unknown key 'temprature'; did you mean 'temperature'?",
        ),
        (
            "models:\n- id: a\n  kind: chat\n  path: x\n  sampling: {temperature: 9}",
            "models.yml:5: temperature: expected a number <= 2.0.",
        ),
        ("models:\n- id: a\n  path: x", "models.yml:2: the key 'kind' is missing."),
        (
            "models:\n- id: a\n  kind: chatt\n  path: x",
            "models.yml:3: kind: 'chatt' is not one of chat, multimodal, image, tts, embedding, rerank; "
            "did you mean 'chat'?",
        ),
        ("models:\n- id: 5\n  kind: chat\n  path: x", "models.yml:2: id: expected text, got a whole number."),
        (
            "models:\n- id: a\n  kind: chat\n  path: x\n- id: b\n  aliases: [a]\n  kind: chat\n  path: x",
            "models.yml:5: the name 'a' is taken by the model on line 2.",
        ),
        (
            "models:\n- {id: a, kind: chat, path: x, default: true}\n- {id: b, kind: chat, path: x, default: true}",
            "models.yml:3: line 2 has the default of kind 'chat' already.",
        ),
        (
            "models:\n- id: a\n  kind: chat\n  path: x\n  engine: vlm",
            "models.yml:5: engine: 'vlm' is no engine of kind 'chat'; it is one of auto, transformers, vllm; "
            "did you mean 'vllm'?",
        ),
        (
            "models:\n- {id: a, kind: rerank, path: x, engine: vllm}",
            "models.yml:2: engine: 'vllm' is no engine of kind 'rerank'; it is one of auto, sentence-transformers.",
        ),
        (
            "models:\n- id: a\n  kind: chat\n  path: x\n  device: gpu",
            "models.yml:5: device: 'gpu' is not auto, cpu, cuda or like cuda:1.",
        ),
        (
            "models:\n- id: a\n  kind: chat\n  path: x\n  memory: {0: lots}",
            "models.yml:5: memory: 'lots' is no amount of memory; write it like 2GB.",
        ),
        (
            "models:\n- id: a\n  kind: chat\n  path: x\n  memory: {gpu: 2GB}",
            "models.yml:5: memory: 'gpu' is no device; a GPU is named by its number, the machine is cpu: "
            "{0: 20GB, cpu: 8GB}.",
        ),
        (
            "models:\n- {id: a, knd: chat, path: x}\n"
            "- {id: b, kind: tts, path: x, device: gpu, defalt: true, dtype: int8, engine_args: {x: 1, first_chunk: 1}}"
            "\n"
            "router: {key: x}",
            "models.yml:2: unknown key 'knd'; did you mean 'kind'?\n"
            "models.yml:3: device: 'gpu' is not auto, cpu, cuda or like cuda:1.\n"
            "models.yml:3: dtype: 'int8' is not one of auto, float32, bfloat16, float16.\n"
            "models.yml:3: engine_args: first_chunk: expected a whole number >= 30.\n"
            "models.yml:3: engine_args: x: unknown key; known: first_chunk, instruct, voices.\n"
            "models.yml:3: unknown key 'defalt'; did you mean 'default'?\n"
            "models.yml:4: unknown key 'key'; did you mean 'keys'?",
        ),
        (
            "models:\n- id: a\n  kind：chat\n  path: x",
            "models.yml:3: the colon after 'kind' is a full-width one (：), which is none in YAML; write ': '.\n"
            "models.yml:3: not valid YAML: there is no ': ' behind the key.",
        ),
        (
            "models:\n- id：a",
            "models.yml:2: the colon after 'id' is a full-width one (：), which is none in YAML; write ': '.\n"
            "models.yml:2: models[0]: expected keys with values, got text.",
        ),
        (
            "upstreams:\n- url: http://a:1\n- prefix: x\n  url: foo",
            "models.yml:4: url: 'foo' is not an address like http://host:8000 or dns+http://name:8000.",
        ),
        (
            "models_config:\n- model_name: a\n  model_path: x\n  model_type: music",
            "models.yml:4: model_type: 'music' is not one of completion, chat, embedding, multimodal, vision, "
            "image, diffuser, diffusers, audio, tts, rerank.",
        ),
    ],
)
def test_each_mistake_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, FILE)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("2024-13-45", "not valid YAML: '2024-13-45' is no timestamp."),
        ("!!bool x", "not valid YAML: 'x' is no bool."),
        ("!!timestamp abc", "not valid YAML: 'abc' is no timestamp."),
        (r'"\ud800"', "not valid YAML: half a character, or one of the number 0."),
        (r'"/\0"', "not valid YAML: half a character, or one of the number 0."),
        ("~nobody-of-this-name/x", "path: ~nobody-of-this-name/x is in the home of nobody here."),
        ("/" + "a" * 300, f"path: /{'a' * 79} cannot be looked at: File name too long."),
        ("x\n  max_batch: 99999999999999999999", "not valid YAML: a number of more than 64 bits."),
    ],
)
def test_a_value_that_is_none_has_its_line(value: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"models:\n- id: a\n  kind: chat\n  path: {value}", FILE)
    assert str(caught.value) == f"models.yml:{3 + len(value.splitlines())}: {says}"


def test_paths_of_other_keys_are_followed_with_the_same_care() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(
            "models:\n- {id: a, kind: tts, path: x, engine_args: {voices: ~nobody-of-this-name/x}}\n"
            f"router:\n  keys: /{'a' * 300}",
            FILE,
        )
    assert [line[:40] for line in str(caught.value).splitlines()] == [
        "models.yml:2: engine_args: voices: ~nobo",
        f"models.yml:4: keys: /{'a' * 19}",
    ]


@pytest.mark.parametrize("name", [r"a\nb", r"\e[31ma", r"\u202ea"])
def test_a_name_is_one_line_that_can_be_seen(name: str) -> None:
    with pytest.raises(ConfigError, match=r"models.yml:2: .*one line each, of characters that can be seen"):
        parse_config(f'models:\n- {{id: "{name}", kind: chat, path: x}}', FILE)


def test_what_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"models.yml: not usable: it is nested too deeply"):
        parse_config(f"models: {'[' * 5000}{']' * 5000}", FILE)


@pytest.mark.parametrize("url", ["foo", "host:8000", "http://", "ftp://a", "http://a:b", "http://a:99999", "dns+a:1"])
def test_the_url_of_an_upstream_has_a_scheme_and_a_host(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models.yml:1: url: .* is not an address"):
        parse_config(f"upstreams: [{{url: '{url}'}}]", FILE)
    file = tmp_path / "upstreams.yml"
    file.write_text(f"- http://a\n- '{url}'")
    with pytest.raises(ConfigError, match=r"upstreams.yml:2: url: .* is not an address"):
        load_upstreams(file)


@pytest.mark.parametrize("url", ["http://a", "https://a.b:1/v1", "dns+http://a:8000", "http://[::1]:8000/"])
def test_the_url_of_an_upstream_may_have_a_path_and_be_looked_up(url: str) -> None:
    assert parse_config(f"upstreams: [{{url: '{url}'}}]", FILE).upstreams[0].url == url


@pytest.mark.parametrize("url", ["http://u:secret@a", "http://a?key=secret", "http://a/v1#secret", "http://secret@a"])
def test_the_url_of_an_upstream_has_nothing_that_the_router_cannot_use(url: str) -> None:
    with pytest.raises(ConfigError, match=r"models.yml:1: url: it has more than a host, a port and a path") as caught:
        parse_config(f"upstreams: [{{url: '{url}'}}]", FILE)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://a b", "http://a ", "http://a\\n/v1"])
def test_the_url_of_an_upstream_has_no_blanks(url: str) -> None:
    with pytest.raises(ConfigError, match=r"models.yml:1: url: .* is not an address"):
        parse_config(f'upstreams: [{{url: "{url}"}}]', FILE)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("|\n    sk-secret\n", "it ends with a line break, which '|' and '>' keep; write it behind 'key: '."),
        ('"sk-secret "', "it is visible ASCII characters without blanks."),
        ("sk-secret–1", "it is visible ASCII characters without blanks."),
    ],
)
def test_the_key_of_an_upstream_is_one_that_a_header_can_carry(key: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"upstreams:\n- url: http://a\n  key: {key}", FILE)
    assert str(caught.value) == f"models.yml:3: key: {says}"


def test_no_upstream_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("upstreams:\n- url: http://a:1\n- url: http://b\n- url: http://a:1/", FILE)
    assert str(caught.value) == "models.yml:4: url: the upstream on line 2 has this address already."
    file = tmp_path / "upstreams.yml"
    file.write_text("[http://a, http://a]")
    with pytest.raises(ConfigError, match=r"upstreams.yml:1: url: the upstream on line 1 has this address already"):
        load_upstreams(file)


def test_addresses_of_the_router_are_such() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("router:\n  redis: localhost:6379\n  traces: localhost:4318", FILE)
    assert str(caught.value).splitlines() == [
        "models.yml:2: redis: 'localhost:6379' is not like redis://host:6379.",
        "models.yml:3: traces: 'localhost:4318' is not like http://host:4318.",
    ]
    router = parse_config("router: {redis: 'rediss://:x@h/1', traces: 'https://h/v1/traces'}", FILE).router
    assert (router.redis, router.traces) == ("rediss://:x@h/1", "https://h/v1/traces")
    assert parse_config("router: {redis: '', traces: ''}", FILE).router.redis == ""


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("on: 1\nmodels: []", 1, "on"),
        ("models:\n- id: a\n  kind: chat\n  path: x\n  no: 1", 5, "no"),
        ("models:\n- id: a\n  kind: chat\n  path: x\n  engine_args:\n    max-len: 1\n    2: 1", 7, "2"),
        ("models:\n- {id: a, kind: chat, path: x, memory: {0: 1GB,\n    1.5: 1GB}}", 3, "1.5"),
        ("upstreams:\n- url: http://a\n  aliases:\n    2024-01-01: gpt", 4, "2024-01-01"),
        ("router:\n  ~: 1", 2, "~"),
    ],
)
def test_a_key_that_is_no_text_for_yaml_is_named(text: str, line: int, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, FILE)
    assert str(caught.value) == f"models.yml:{line}: the key {key} is not text for YAML; put it in quotes."


def test_aliases_of_an_upstream_are_a_mapping() -> None:
    with pytest.raises(ConfigError, match=r"aliases: expected keys with values, got a list; write it like {gpt-4o:"):
        parse_config("upstreams:\n- url: http://a\n  aliases: [one, two]", FILE)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3"])
def test_devices(device: str) -> None:
    (spec,) = parse_config(f"models: [{{id: a, kind: chat, path: x, device: '{device}'}}]", FILE).models
    assert spec.device == device


def test_a_keep_that_means_nothing_is_refused_on_its_line() -> None:
    with pytest.raises(ConfigError, match=r"models.yml:2: .*keep is 'always' or like '10m idle', not 'forever'"):
        parse_config("models:\n- {id: a, kind: chat, path: x, keep: forever}", FILE)


def test_a_file_that_is_far_too_large_is_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / "models.yml"
    file.write_text("models:\n" + "# a line\n" * 200_000)
    with pytest.raises(ConfigError, match=r"models.yml: cannot be read: it is larger than 1 MiB\.$"):
        load_config(file)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yml: cannot be read: No such file or directory"):
        load_config(tmp_path / "nowhere.yml")


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ("utf-16", ": cannot be read: it is UTF-16 text; save it as UTF-8."),
        ("gbk", ":2: cannot be read: not UTF-8 text; save it as UTF-8."),
    ],
)
def test_another_encoding_is_told(encoding: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "models.yml"
    file.write_bytes("models:\n- {id: 模型, kind: chat, path: x}".encode(encoding))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == f"{file}{says}"


@pytest.mark.parametrize("text", ["\ufeffmodels: []\n", "models:\r\n- {id: a, kind: chat,\r\n  path: x}\r\n"])
def test_marks_and_line_ends_of_windows_are_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "models.yml"
    file.write_bytes(text.encode())
    load_config(file)


def test_a_file_whose_first_key_is_misspelt_may_be_of_either_dialect() -> None:
    for key in ("models", "models_config"):
        with pytest.raises(ConfigError, match=f"did you mean '{key}'"):
            parse_config(f"{key[:-2]}{key[-1]}: []", FILE)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("id: 'a\n  kind: chat\n  path: x", "2: not valid YAML: the quote that begins here has no end."),
        ("id: 'a\n  kind: chat\n  path: 'x'", "2: not valid YAML: the quote that begins here ends on line 4 only"),
        (
            "id: a\n  memory: {0: 2GB\n  kind: chat",
            "3: not valid YAML: the '{' here has no '}', as is noticed on line 4.",
        ),
        (
            "id: a\n  aliases: [b, c\n  kind: chat",
            "3: not valid YAML: the '[' here has no ']', as is noticed on line 4.",
        ),
        ("id: a\n  kind chat\n  path: x", "3: not valid YAML: there is no ': ' behind the key."),
        ("id: a\n  kind: chat\n  path: x\n---\nmodels: []", "5: not valid YAML: a second document begins here"),
        ("id: a\n kind: chat", "3: not valid YAML: this line begins in another column than those that it belongs to."),
        ("id: a\n  path: x\n - id: b", "4: not valid YAML: this line begins in another column than those"),
        ("id: a\n  path: x: y", "3: not valid YAML: a ': ' where none may be"),
        ("id: a\n  kind: chat\n  path: x\n  keep: 10 min", "5: keep is 'always' or like '10m idle', not '10 min'."),
        ("kind: chat\n  path: x\n  id: ''", "4: id is empty."),
        ("id: a\n  kind: chat\n  path: ''", "4: path is empty."),
        ('id: "a\n  b"\n  kind: chta\n  path: x', "4: kind: 'chta' is not one of"),
    ],
)
def test_the_line_is_that_where_a_mistake_begins(entry: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"models:\n- {entry}\n", FILE)
    assert str(caught.value).startswith(f"models.yml:{message}")


def test_an_entry_s_other_mistakes_are_told_beside_one_of_its_values() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("models:\n- {id: a, kind: chat, path: x,\n   keep: 10 min,\n   contxt: 3, max_batch: 0}", FILE)
    assert [line[:13] for line in str(caught.value).splitlines()] == ["models.yml:3:", "models.yml:4:", "models.yml:4:"]


def test_what_is_wrong_beside_the_keys_that_every_entry_needs_is_told_too() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("models:\n- path: 5\n  kind: 7\n  context: 0\n- {kind: chat}", FILE)
    assert str(caught.value).splitlines() == [
        "models.yml:2: path: expected text, got a whole number.",
        "models.yml:2: the key 'id' is missing.",
        "models.yml:3: kind: expected text, got a whole number.",
        "models.yml:4: context must be at least 1.",
        "models.yml:5: the key 'id' is missing.",
        "models.yml:5: the key 'path' is missing.",
    ]


def test_what_is_wrong_in_several_depths_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(
            "foo: 1\nrouter:\n  keys: 5\n  max_waiting: -1\n  bar: {}\nmodels:\n- id: a\n  kind: chat\n  path: x\n"
            "  sampling:\n    temperature: hot\n    path: 2\n    top_k: -1\n  aliases: [b, 5, 6]\n  url: x\n"
            "upstreams:\n- prefix: 5\n  urll: x\n- url: [x]\n  balance: fair",
            FILE,
        )
    told = [line.removeprefix("models.yml:").split(": ") for line in str(caught.value).splitlines()]
    assert [(int(line), what.partition(";")[0].rstrip(".")) for line, what, *_ in told] == [
        (1, "unknown key 'foo'"),
        (3, "keys"),
        (4, "max_waiting"),
        (5, "unknown key 'bar'"),
        (11, "temperature"),
        (12, "unknown key 'path'"),
        (13, "top_k"),
        (14, "aliases[1]"),
        (15, "unknown key 'url'"),
        (17, "prefix"),
        (18, "unknown key 'urll'"),
        (19, "url"),
        (20, "balance"),
    ]


def test_off_is_off_and_not_false(tmp_path: Path) -> None:
    file = tmp_path / "models.yml"
    file.write_text("models:\n- {id: a, kind: chat, path: x, auto_tools: off}\n")
    assert load_config(file).models[0].auto_tools == "off"
