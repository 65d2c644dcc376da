"""vLLM behind our API: how it is started, what is asked of it, and what we make of its answers and failures."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import transformers
from chat import gptq_tiny
from chat.chatglm_tiny import write_tokenizer
from chat.engine_kit import tiny_path
from chat.serving import serving
from openai import OpenAI
from quintet_chat.app import create_app
from quintet_chat.protocol import Generate, Grammar, Sampling
from quintet_chat.vllm import facts, requests, server
from quintet_chat.vllm.engine import VllmEngine
from quintet_chat.worker import create_engine
from quintet_common import vllm_program
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError

DOUBLE = Path(__file__).with_name("vllm_double.py")


def spec_of(**fields: Any) -> ModelSpec:
    return ModelSpec(**({"id": "tiny", "kind": "chat", "path": str(tiny_path()), "engine": "vllm"} | fields))


@pytest.fixture(scope="module", autouse=True)
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """In the place of the interpreter that has vLLM."""
    program = tmp_path_factory.mktemp("vllm") / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {DOUBLE} "$@"\n')
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(vllm_program.PYTHON, str(program))
        yield str(program)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    specs = [
        spec_of(id="tiny", aliases=["t"], default=True, engine_args={"tool_family": "hermes"}),
        spec_of(id="thinker", engine_args={"thinking": "think"}),
        spec_of(id="short", max_waiting=1, max_batch=1),
    ]
    with serving(create_app("chat", specs, "quintet_chat.worker:create_engine")) as url:
        yield url


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def ask(client: OpenAI, text: str, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": [{"role": "user", "content": text}], **fields}
    )


# The command line.


def words(**fields: Any) -> list[str]:
    return server.command(spec_of(**fields))


def test_models_yml_becomes_flags(double: str) -> None:
    made = words(path="org/model", context=4096, max_batch=8, dtype="bfloat16")
    assert made[:4] == [double, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    assert made[4:] == [
        "org/model", "--served-model-name", "tiny", "--max-model-len", "4096", "--max-num-seqs", "8", "--dtype",
        "bfloat16",
    ]  # fmt: skip


def test_any_flag_can_be_given() -> None:
    given: dict[str, Any] = {
        "tensor_parallel_size": 2, "enforce_eager": True, "enable-prefix-caching": False,
        "--quantization": "gptq_marlin", "limit_mm_per_prompt": {"image": 4}, "allowed_origins": ["a", "b"],
        "url": None, "env": {}, "tool_family": "hermes", "reasoning-parser": "qwen3",
    }  # fmt: skip
    assert words(engine_args=given)[7:] == [
        "--tensor-parallel-size", "2", "--enforce-eager", "--no-enable-prefix-caching", "--quantization",
        "gptq_marlin", "--limit-mm-per-prompt", '{"image": 4}', "--allowed-origins", "a", "b",
    ]  # fmt: skip
    assert words(context=100, engine_args={"max_model_len": 50})[7:] == ["--max-model-len", "50"]


def test_memory_becomes_a_share_of_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # only here: the worker of vLLM does without

    sizes = {1: 40_000_000_000, 3: 80_000_000_000}

    class Properties:
        def __init__(self, gpu: int) -> None:
            self.total_memory = sizes[gpu]

    monkeypatch.setattr(torch.cuda, "get_device_properties", Properties)
    spec = spec_of(memory={3: "20GB", 1: "20GB"})
    monkeypatch.setattr(server, "_has_gpu", lambda: False)
    assert (server.command(spec)[7:], server._devices(spec)) == ([], {})
    monkeypatch.setattr(server, "_has_gpu", lambda: True)
    assert server.command(spec)[7:] == ["--gpu-memory-utilization", "0.25", "--tensor-parallel-size", "2"]
    assert server._devices(spec) == {"CUDA_VISIBLE_DEVICES": "1,3"}


def test_quantised_experts_on_two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, double: str) -> None:
    """As for Qwen2-57B-A14B-Instruct-GPTQ-Int4: vLLM reads from the files how they are quantised."""
    import torch

    class Properties:
        total_memory = 80_000_000_000

        def __init__(self, _gpu: int) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "get_device_properties", Properties)
    monkeypatch.setattr(server, "_has_gpu", lambda: True)
    gptq_tiny.write(tmp_path, experts=True)
    spec = spec_of(id="Qwen2-57B", path=str(tmp_path), engine="auto", memory={0: "40GB", 1: "40GB"}, context=32768)
    assert facts.needs_vllm(spec)
    assert server.command(spec) == [
        double, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path),
        "--served-model-name", "Qwen2-57B", "--max-model-len", "32768", "--gpu-memory-utilization", "0.5",
        "--tensor-parallel-size", "2",
    ]  # fmt: skip
    assert facts.info(spec, 32768)["quantization"] == "gptq"


def test_without_vllm_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm_program.PYTHON, raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LoadError, match=r"vLLM is not installed here\..*QUINTET_VLLM_PYTHON"):
        words()
    monkeypatch.setenv(vllm_program.PYTHON, "/nonexistent/python")
    with pytest.raises(LoadError, match="no program '/nonexistent/python'"):
        VllmEngine(spec_of()).load(lambda _fraction, _note: None)


# Loading.


def test_loading_goes_forward_as_the_log_says() -> None:
    seen: list[tuple[float, str]] = []
    engine = VllmEngine(spec_of(context=100))
    info = engine.load(lambda fraction, note: seen.append((fraction, note)))
    assert seen == [(0.2, "loading the weights"), (0.45, "loading the weights"), (0.7, "loading the weights")]
    assert info["engine"] == "vllm"
    assert info["context"] == 100
    assert engine.stats()["prefix_cache_queries_total"] == 7
    assert "prompt_tokens_total" not in engine.stats()  # which the service counts
    assert engine._server is not None
    engine._ready = False  # the test's process is to survive the end of the server
    engine._server.stop()


def test_a_server_that_ends_as_soon_as_it_has_answered_is_no_loaded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = VllmEngine(spec_of(engine_args={"url": "http://127.0.0.1:1"}))

    def answered(*_: object) -> dict[str, str]:
        engine._on_death("out of memory")
        return {"id": "m"}

    monkeypatch.setattr(engine, "_wait_for", answered)
    with pytest.raises(LoadError, match="vLLM ended: out of memory"):
        engine.load(lambda _fraction, _note: None)


def test_the_reason_of_a_failed_start_is_told() -> None:
    with pytest.raises(LoadError, match=r"tiny: vLLM ended: ValueError: No room for 3 GiB of keys and values\."):
        VllmEngine(spec_of(engine_args={"fail": True})).load(lambda _fraction, _note: None)


def test_why_a_model_cannot_be_run_reaches_the_client() -> None:
    app = create_app("chat", [spec_of(engine_args={"fail": True})], "quintet_chat.worker:create_engine")
    with serving(app, state="failed") as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        with pytest.raises(openai.APIStatusError, match="No room for 3 GiB of keys and values") as refused:
            ask(client, "hello")
        assert refused.value.status_code == 503
        assert isinstance(refused.value.body, dict)
        assert refused.value.body.keys() == {"message", "type", "param", "code"}
        assert "No room for 3 GiB" in str(client.models.retrieve("tiny").model_dump())


def test_pickles_are_refused_before_vllm_is_started(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(LoadError, match=r"tiny: its weights are a pickle \(pytorch_model.bin\)"):
        VllmEngine(spec_of(path=str(tmp_path))).load(lambda _fraction, _note: None)
    assert "--pickled-weights" not in words(path=str(tmp_path), engine_args={"pickled_weights": True})


def test_what_an_entry_turns_on_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(LoadError):
        VllmEngine(spec_of(engine_args={"fail": True, "trust_remote_code": True})).load(lambda _fraction, _note: None)
    assert "tiny: trust_remote_code is on." in caplog.text


def test_a_running_server_can_be_used(double: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    port = server._free_port()
    process = subprocess.Popen(
        [double, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "org/served"],
        stdout=subprocess.DEVNULL,
    )
    try:
        arguments = {"url": f"http://127.0.0.1:{port}/v1", "key": "secret"}
        deadline = time.monotonic() + 120
        while True:
            engine = VllmEngine(spec_of(engine_args=arguments))
            try:
                assert engine.load(lambda _fraction, _note: None)["context"] == 512
                break
            except ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert engine._model == "org/served"
        with pytest.raises(LoadError, match=r"answers 401"):
            VllmEngine(spec_of(engine_args=arguments | {"key": "wrong"})).load(lambda _fraction, _note: None)
    finally:
        process.kill()
        process.wait()


def test_what_files_say(tmp_path: Path) -> None:
    files = {
        "config.json": {"model_type": "minicpmv", "vocab_size": 300, "quantization_config": {"quant_method": "gptq"}},
        "generation_config.json": {"temperature": 0.7, "top_k": 20, "eos_token_id": 1},
        "tokenizer_config.json": {"chat_template": "{{ messages }}"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    info = facts.info(spec_of(path=str(tmp_path)), 1000)
    assert info == {
        "engine": "vllm", "template_tools": False, "sampling": {"temperature": 0.7, "top_k": 20}, "context": 1000,
        "vocab_size": 300, "tool_family": "hermes", "quantization": "gptq",
    }  # fmt: skip
    (tmp_path / "chat_template.jinja").write_text("{{ tools }}<|observation|><think>")
    info = facts.info(spec_of(path=str(tmp_path)), None)
    assert (info["tool_family"], info["template_tools"], info["thinking"]) == ("glm4", True, "think")


@pytest.mark.parametrize("sees", [False, True])
def test_the_original_glm4_gets_our_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sees: bool) -> None:
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path / "cache"))
    config = {"model_type": "chatglm", "padded_vocab_size": 512} | ({"vision_config": {}} if sees else {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=r"tokenizer\.model is missing"):
        words(path=str(tmp_path))
    write_tokenizer(tmp_path)
    made = words(path=str(tmp_path))
    folder = Path(made[made.index("--tokenizer") + 1])
    assert folder.parent == tmp_path / "cache"
    assert ("--hf-overrides" in made) is sees
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    content = [{"type": "text", "text": "what"}, {"type": "image"}, {"type": "text", "text": "is it"}]
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": content}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "[gMASK]<sop><|system|>\nBe kind.<|user|>\n"
        "<|begin_of_image|><|endoftext|><|end_of_image|>what\nis it<|assistant|>"
    )
    info = facts.info(spec_of(path=str(tmp_path)), None)
    assert (info["tool_family"], info["template_tools"], info["vocab_size"]) == ("glm4", True, 512)
    assert words(path=str(tmp_path)) == made
    assert "--tokenizer" not in words(path=str(tmp_path), engine_args={"url": "http://127.0.0.1:1"})


@pytest.mark.parametrize(
    ("config", "engine"),
    [
        ({"model_type": "minicpmv"}, "VllmEngine"),
        ({"model_type": "qwen2_moe", "quantization_config": {"quant_method": "gptq"}}, "VllmEngine"),
        ({"model_type": "qwen2"}, "ChatEngine"),
        ({"model_type": "chatglm"}, "ChatEngine"),
        ({"model_type": "chatglm", "vision_config": {}}, "ChatEngine"),
    ],
)
def test_what_only_vllm_can_run_goes_there(tmp_path: Path, config: dict[str, Any], engine: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(create_engine(spec_of(path=str(tmp_path), engine="auto"))).__name__ == engine
    assert type(create_engine(spec_of(path=str(tmp_path), engine="transformers"))).__name__ == "ChatEngine"


def test_the_worker_of_vllm_is_light() -> None:
    code = "import sys, quintet_chat.vllm.engine; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# Requests.


def test_every_parameter_reaches_vllm() -> None:
    sampling = Sampling(
        temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, max_tokens=9, min_tokens=2, stop=["x"], stop_token_ids=[3],
        ignore_eos=True, seed=4, presence_penalty=0.1, frequency_penalty=0.2, repetition_penalty=1.1,
        logit_bias={7: -5.0}, logprobs=2,
    )  # fmt: skip
    wanted = requests.completion("m", Generate(prompt=[1, 2], sampling=sampling, n=3), None)
    expected = {name: getattr(sampling, name) for name in Sampling.__struct_fields__}
    assert {name: wanted[name] for name in expected} == expected | {"logit_bias": {"7": -5.0}}
    assert (wanted["n"], wanted["prompt"]) == (3, [1, 2])
    greedy = requests.completion("m", Generate(prompt="a", sampling=Sampling(temperature=0), n=2), 11)
    assert (greedy["top_k"], greedy["n"], greedy["max_tokens"]) == (1, 2, 11)


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        (Grammar(type="json_object"), {"json_object": True}),
        (Grammar(type="json_schema", value={"type": "object"}), {"json": {"type": "object"}}),
        (Grammar(type="structural_tag", value={"format": 1}), {"structural_tag": '{"format": 1}'}),
        (Grammar(type="regex", value="a+"), {"regex": "a+"}),
        (Grammar(type="ebnf", value="root ::= x"), {"grammar": "root ::= x"}),
    ],
)
def test_grammars(grammar: Grammar, expected: dict[str, Any]) -> None:
    assert requests.chat("m", Generate(messages=[], grammar=grammar))["structured_outputs"] == expected


@pytest.mark.parametrize(
    ("grammar", "answer"),
    [
        (Grammar(type="json_object"), {"type": "json_schema", "json_schema": {"type": "object"}}),
        (Grammar(type="json_schema", value={"a": 1}), {"type": "json_schema", "json_schema": {"a": 1}}),
        (Grammar(type="structural_tag", value={"format": {"type": "x"}}), {"type": "x"}),
        (Grammar(type="regex", value="a+"), {"type": "regex", "pattern": "a+"}),
        (Grammar(type="ebnf", value="root ::= x"), {"type": "grammar", "grammar": "root ::= x"}),
    ],
)
def test_a_grammar_holds_behind_the_thinking(grammar: Grammar, answer: dict[str, Any]) -> None:
    body = Generate(messages=[], grammar=grammar, thinking=("<think>", "</think>"))

    def form(state: requests.Thinking) -> Any:
        return json.loads(requests.chat("m", body, state)["structured_outputs"]["structural_tag"])["format"]

    thought, _gap, behind = form("open")["elements"]
    assert (thought["begin"], thought["end"], behind) == ("", "</think>", answer)
    either = form(None)["elements"]
    assert (either[0]["elements"][0]["begin"], either[0]["elements"][2], either[1]) == ("<think>", answer, answer)
    plain = requests.chat("m", Generate(messages=[], grammar=grammar))
    assert requests.chat("m", body, "closed")["structured_outputs"] == plain["structured_outputs"]


def test_pictures_calls_and_prefixes() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": "你"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image", "image": 1}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    body = Generate(messages=messages, images=[b"a", b"b"], assistant_prefix="Sure", tools=[{"type": "function"}])
    wanted = requests.chat("m", body)
    picture, text = wanted["messages"][0]["content"]
    assert base64.b64decode(picture["image_url"]["url"].partition(",")[2]) == b"b"
    assert text == {"type": "text", "text": "?"}
    assert wanted["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"a": "你"}'
    assert wanted["messages"][2] == {"role": "assistant", "content": "Sure"}
    assert (wanted["continue_final_message"], wanted["tool_choice"]) == (True, "none")
    with pytest.raises(ApiError, match="'chat_template' cannot be set"):
        requests.chat("m", Generate(messages=[], template_args={"chat_template": "x"}))


# Answers.


def test_an_answer(client: OpenAI) -> None:
    answer = ask(client, "hello there", logprobs=True, n=2)
    assert [choice.message.content for choice in answer.choices] == ["hello there ", "hello there "]
    assert answer.model == "tiny"
    assert answer.choices[0].finish_reason == "stop"
    assert [each.token for each in answer.choices[0].logprobs.content] == ["hello ", "there "]
    assert answer.usage.prompt_tokens == 7
    assert answer.usage.completion_tokens == 4


def test_a_stream(client: OpenAI) -> None:
    chunks = list(ask(client, "one two three", stream=True, max_tokens=3, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three "
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 3


def test_a_call_is_parsed_on_our_side(client: OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    answer = ask(client, '<tool_call>\n{"name":"f","arguments":{"a":1}}\n</tool_call>', tools=tools)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) == {"a": 1}


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model="t", prompt="a b", echo=True, max_tokens=5)
    assert answer.choices[0].text == "a ba b "
    from_ids = client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=5, extra_body={"echo": True})
    assert from_ids.choices[0].text.startswith("5 6 7")


def test_tokens_of_prompts_and_back(url: str) -> None:
    def post(path: str, **body: Any) -> Any:
        return httpx2.post(f"{url}{path}", json={"model": "tiny", **body}).json()

    found = post("/tokenize", prompt="a bb a", return_token_strs=True)
    assert (found["tokens"], found["token_strs"]) == ([1, 2, 1], ["a", "bb", "a"])
    assert post("/tokenize", messages=[{"role": "user", "content": "a b c d"}], add_generation_prompt=False) == {
        "count": 4, "max_model_len": 512, "tokens": [1, 1, 1, 1],
    }  # fmt: skip
    assert post("/detokenize", tokens=[5, 6]) == {"prompt": "5 6"}


def test_no_token_at_all(client: OpenAI) -> None:
    only = client.completions.create(model="tiny", prompt="a b", echo=True, max_tokens=0, n=2)
    assert [choice.text for choice in only.choices] == ["a b", "a b"]
    assert (only.usage.prompt_tokens, only.usage.completion_tokens) == (2, 0)


def test_thinking_that_the_prompt_has_opened(client: OpenAI) -> None:
    opened = ask(client, "see </think> so", model="thinker").choices[0].message
    assert (opened.reasoning_content, opened.content) == ("see", "so ")


def test_a_refusal_keeps_its_status(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "too long", stream=True)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_failures_in_the_middle(client: OpenAI) -> None:
    for text in ("error", "break"):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, text)
        assert caught.value.status_code == 503
    with pytest.raises(openai.APIError):
        list(ask(client, "one break", stream=True))


def running(url: str, model: str) -> float:
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    found = [line for line in lines if "num_requests_running{" in line and f'model="{model}"' in line]
    return sum(float(line.split()[-1]) for line in found)


def until(condition: Any, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_client_that_leaves_is_told_to_vllm(client: OpenAI, url: str) -> None:
    stream = ask(client, "one sleep", stream=True)
    next(iter(stream))
    until(lambda: running(url, "tiny") == 1)
    stream.close()
    until(lambda: running(url, "tiny") == 0)


def test_a_full_queue_is_429(client: OpenAI) -> None:
    streams = [ask(client, "one sleep", stream=True, model="short") for _ in range(2)]
    with pytest.raises(openai.RateLimitError):
        ask(client, "one", model="short")
    for stream in streams:
        stream.close()


def children(process: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(path.parent.name))
    return found


def test_when_vllm_dies_it_is_started_again(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, "one crash")
    assert caught.value.status_code == 503
    patient = client.with_options(max_retries=3)  # the first may come before the worker has ended with it
    assert ask(patient, "back again").choices[0].message.content == "back again "


@pytest.mark.skipif(sys.platform != "linux", reason="the leash is Linux's")
def test_when_the_worker_dies_vllm_goes_with_it() -> None:
    code = (
        "import time\nfrom quintet_chat.vllm.engine import VllmEngine\n"
        "from quintet_common.models_yml import ModelSpec\n"
        "engine = VllmEngine(ModelSpec(id='m', kind='chat', path='x', engine='vllm'))\n"
        "engine.load(lambda *_: None); print('ready', flush=True); time.sleep(60)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        (child,) = children(worker.pid)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])
