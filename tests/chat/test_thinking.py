"""Thinking: told apart from the answer however its text is cut, and free of the grammar that the answer keeps."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import xgrammar
from chat.accepts import Accepts
from chat.engine_kit import SHAPE, ask, started, tokenizer
from quintet_chat.api.chat_request import ChatRequest
from quintet_chat.api.tool_plan import ToolPlan, grammar_of
from quintet_chat.backends.families import thinking_style, tool_family
from quintet_chat.engine.engine import ChatEngine
from quintet_chat.protocol import Accepted, Grammar
from quintet_chat.tools.base import Piece, Reasoning, Text
from quintet_chat.tools.thinking import TAGS, ThinkingParser, state_after
from quintet_common.models_yml import ModelSpec
from quintet_common.worker.host import LoadError

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 20}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}


def split(text: str, inside: bool, cuts: list[int], style: str = "think") -> tuple[str, str]:
    """What is thought and what is said in ``text``, fed in pieces."""
    parser = ThinkingParser(TAGS[style], inside)
    pieces: list[Piece] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        pieces += parser.feed(text[start:end])
    pieces += parser.close()
    thought = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    return thought, "".join(piece.text for piece in pieces if isinstance(piece, Text))


@pytest.mark.parametrize(
    ("text", "inside", "thought", "said"),
    [
        ("<think>\nHm, a < b.\n</think>\n\nYes.\n", False, "Hm, a < b.", "Yes.\n"),
        ("\n<think>Hm.</think>Yes.", False, "Hm.", "Yes."),
        ("Hm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
        ("<think>Hm.</think>Yes.", True, "Hm.", "Yes."),
        ("Hm, still th", True, "Hm, still th", ""),
        ("Hm </thi", True, "Hm </thi", ""),
        ("Yes, <think> is a tag.", False, "", "Yes, <think> is a tag."),
        (" Yes.", False, "", " Yes."),
        ("<thin", False, "", "<thin"),
        ("<think></think>", False, "", ""),
        ("a</think>b</think>c", True, "a", "b</think>c"),
        ("", True, "", ""),
    ],
)
def test_thoughts_are_told_apart_however_the_text_is_cut(text: str, inside: bool, thought: str, said: str) -> None:
    draw = random.Random(1)
    for cuts in [[], list(range(1, len(text))), *(sorted(draw.choices(range(len(text) + 1), k=3)) for _ in range(20))]:
        assert split(text, inside, cuts) == (thought, said)


@pytest.mark.parametrize(
    ("style", "text", "thought", "said"),
    [
        ("hunyuan", "<think>\nHm.\n</think>\n<answer>\nYes.\n</answer>", "Hm.", "Yes."),
        ("hunyuan", "<think>\n\n</think>\n<answer>\nYes, 1 < 2 </a>.\n</answer>\n", "", "Yes, 1 < 2 </a>."),
        ("hunyuan", "<answer>\nYes.\n</answer>", "", "Yes."),
        ("hunyuan", "<think>Hm.</think>\nYes, <answer>.", "Hm.", "Yes, <answer>."),
        ("hunyuan", " Yes.\n", "", " Yes.\n"),
        ("hunyuan", "<think>Hm.</think><answer>\nYes, a\n\nb </ans", "Hm.", "Yes, a\n\nb </ans"),
        ("hunyuan", "<think>Hm.</think><answer>a</answer>\n\nb", "Hm.", "a\n\nb"),
        ("granite", "<think>Hm.</think><response>Yes.</response>", "Hm.", "Yes."),
        ("granite", "<think>\nHm.\n</think>\n\n<response>\nYes.\n</response>\n", "Hm.", "Yes."),
        ("granite_3_2", "Here is my thought process:\n\nHm.\n\nHere is my response:\n\nYes.", "Hm.", "Yes."),
        ("granite_3_2", "Here is a cat.", "", "Here is a cat."),
        ("seed_oss", "<seed:think>\nHm, <think>.</seed:think>Yes.", "Hm, <think>.", "Yes."),
        ("kimi", "◁think▷Hm.◁/think▷Yes.", "Hm.", "Yes."),
        ("apertus", "<|inner_prefix|>Hm.<|inner_suffix|>Yes.", "Hm.", "Yes."),
        ("gemma4", "<|channel>thought\nHm.<channel|>Yes.", "Hm.", "Yes."),
        ("gemma4", "<|channel>thought\n<channel|>Yes.", "", "Yes."),
        (
            "cohere",
            "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>",
            "Hm.",
            "Yes.",
        ),
        ("exaone_deep", "<thought>\nHm.\n</thought>\n\nYes.", "Hm.", "Yes."),
    ],
)
def test_every_styles_tags_are_told_apart(style: str, text: str, thought: str, said: str) -> None:
    draw = random.Random(1)
    for cuts in [[], list(range(1, len(text))), *(sorted(draw.choices(range(len(text) + 1), k=3)) for _ in range(20))]:
        assert split(text, False, cuts, style) == (thought, said)


def test_json_may_stand_between_the_tags_of_an_answer() -> None:
    body = ChatRequest.model_validate(
        {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}}
    )
    grammar = grammar_of(body, ToolPlan(), False, TAGS["hunyuan"].answer)
    assert grammar is not None
    accepts = Accepts()
    for text in ('{"a": 1}', '<answer>\n{"a": 1}\n</answer>', "<answer>{}</answer>"):
        assert accepts(grammar.value["format"], text)
    assert not accepts(grammar.value["format"], "<answer>Yes.</answer>")


@pytest.mark.parametrize("style", TAGS)
def test_a_prompt_may_open_or_close_any_style(style: str) -> None:
    opening, closing = TAGS[style].around
    assert state_after(f"<|assistant|>{opening}\n", TAGS[style].around) == "open"
    assert state_after(f"<|assistant|>{opening}\n\n{closing}\n", TAGS[style].around) == "closed"
    assert state_after("<|assistant|>", TAGS[style].around) is None
    assert split(f"\nHm.\n{closing}\n\nYes.", True, [], style) == ("Hm.", "Yes.")


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if opened %}<think>\n{% elif enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


def thinker(folder: Path, as_tokens: bool) -> ChatEngine:
    """A random model whose template thinks; its tags are tokens of their own or made of letters."""
    torch.manual_seed(0)
    made = tokenizer()
    if as_tokens:
        made.add_tokens(["<think>", "</think>"])
    made.chat_template = TEMPLATE
    config = transformers.AutoConfig.for_model("llama", vocab_size=len(made), **SHAPE)
    config.eos_token_id = made.eos_token_id
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    made.save_pretrained(folder)
    return started(ModelSpec(id="thinker", kind="chat", path=str(folder), dtype="float32", device="cpu"))


@pytest.fixture(scope="module", params=[True, False], ids=["tokens", "letters"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatEngine:
    return thinker(tmp_path_factory.mktemp("thinker"), request.param)


def closing(engine: ChatEngine) -> dict[int, float]:
    """A bias towards the letters of the closing tag, without which a random model would never write it."""
    made = engine._output._tokenizer
    ids = made("</think>", add_special_tokens=False)["input_ids"]
    return dict.fromkeys(ids, 6.0 if len(ids) == 1 else 40.0)


def test_the_worker_says_that_the_model_thinks(engine: ChatEngine) -> None:
    assert engine.info["thinking"] == "think"  # type: ignore[attr-defined]


def heard(engine: ChatEngine, seed: int, **fields: Any) -> Any:
    return ask(
        engine,
        messages=[{"role": "user", "content": "the cat"}],
        grammar=Grammar(type="json_schema", value=SCHEMA),
        thinking=("<think>", "</think>"),
        temperature=2.0,
        seed=seed,
        **fields,
    )


def test_a_grammar_holds_behind_the_thinking(engine: ChatEngine) -> None:
    """Inside, anything may be said but the end. A random model must be pushed towards the closing tag."""
    ended = 0
    for seed in range(6):
        result = heard(engine, seed, template_args={"opened": True}, logit_bias=closing(engine), max_tokens=150)
        accepted = result.events[0]
        assert isinstance(accepted, Accepted)
        assert accepted.thinking
        if result.reasons[0] == "length":
            continue
        ended += 1
        _, said = split(result.text(), True, [])
        value = json.loads(said)
        assert value["kind"] in ("cat", "dog")
        assert 0 <= value["age"] <= 20
    if len(closing(engine)) == 1:
        assert ended >= 3


def test_a_model_that_may_think_may_also_answer_at_once(engine: ChatEngine) -> None:
    opening = engine._output._tokenizer("<think>", add_special_tokens=False)["input_ids"]
    never = dict.fromkeys(opening if len(opening) == 1 else [], -100.0)
    for args, bias in (({}, never), ({"enable_thinking": False}, {})):
        result = heard(engine, 1, template_args=args, logit_bias=bias, max_tokens=60)
        assert not result.events[0].thinking
        assert result.reasons[0] == "stop"
        assert json.loads(result.text())["kind"] in ("cat", "dog")


def test_a_model_that_opens_its_thinking_itself_is_let(engine: ChatEngine) -> None:
    opening = engine._output._tokenizer("<think>", add_special_tokens=False)["input_ids"]
    heavy = dict.fromkeys(opening, 60.0) | (closing(engine) if len(opening) == 1 else {})
    result = heard(engine, 3, logit_bias=heavy, max_tokens=40)
    assert result.text().startswith("<think>")


@pytest.mark.parametrize("after", ["</think>", "</think>\n"])
def test_a_grammar_holds_behind_a_thinking_that_the_model_has_opened_itself(engine: ChatEngine, after: str) -> None:
    tokenizer = engine._output._tokenizer
    grammar = Grammar(type="json_schema", value=SCHEMA)
    matcher = engine._grammars.compile(grammar, ("<think>", "</think>")).matcher()
    bitmask = xgrammar.allocate_token_bitmask(1, len(tokenizer))

    def allowed(token: int) -> bool:
        matcher.fill(bitmask, 0)
        word, bit = divmod(token, 32)
        return bool(int(bitmask[0, word]) >> bit & 1)

    for token in tokenizer(f"<think>the cat{after}", add_special_tokens=False)["input_ids"]:
        assert allowed(token)
        matcher.accept(token)
    for token in tokenizer('{"kind": "cat", "age": 3}', add_special_tokens=False)["input_ids"]:
        assert not allowed(tokenizer.eos_token_id)
        assert allowed(token)
        matcher.accept(token)
    assert allowed(tokenizer.eos_token_id)
    matcher.accept(tokenizer.eos_token_id)
    assert matcher.finished


def test_styles_are_found_by_their_templates() -> None:
    assert thinking_style("<|channel|>analysis") == "harmony"
    assert thinking_style("<|im_start|>") is None
    for style, tags in TAGS.items():
        assert thinking_style("".join((*tags.around, *(tags.answer or ())))) == style


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("<|start|>assistant<|channel|>commentary", "harmony"),
        ("<｜tool▁calls▁begin｜>function<｜tool▁sep｜>```json", "deepseek"),
        ("<｜tool▁calls▁begin｜><｜tool▁sep｜>", "deepseek_v31"),
        ("[TOOL_CALLS]name[ARGS]", "mistral_args"),
        ("[TOOL_CALLS] [", "mistral"),
        ("```json <tool_call>", "hermes"),
        ("<seed:tool_call><function=<parameter=", "seed_oss"),
    ],
)
def test_families_are_found_by_their_templates(template: str, family: str) -> None:
    assert tool_family(template) == family


@pytest.mark.parametrize("setting", ["tool_family", "thinking"])
def test_a_family_that_there_is_not_is_refused(setting: str) -> None:
    spec = ModelSpec(id="x", kind="chat", path="/nowhere", engine_args={setting: "nonsense"})
    with pytest.raises(LoadError, match=f"{setting}: 'nonsense' is not one of none, "):
        ChatEngine(spec).load(lambda _fraction, _note: None)
