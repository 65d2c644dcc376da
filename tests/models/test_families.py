"""What ``docs/models.md`` says of families is so: they load and answer as transformers does, or are refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from chat.engine_kit import ask, started, tokenizer
from models.chat_families import FAMILIES, Family, made, write
from models.other_families import OTHERS, Other
from models.wordings import CHINESE, WORDINGS, Wording
from quintet_chat.backends import families
from quintet_chat.backends.loader import load
from quintet_common.models_yml import ModelSpec, parse_config
from quintet_common.worker.host import LoadError

from models import document

PROMPT = [5, 9, 30, 41, 77, 12, 6, 200, 4, 8, 21]
NEW = 12


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_chat_family(family: Family, tmp_path: Path) -> None:
    spec = ModelSpec(id="m", kind="chat", path=str(write(family, tmp_path)), dtype="float32", device="cpu")
    if family.refused is not None:
        with pytest.raises(LoadError, match=family.refused):
            load(spec, 2, lambda _fraction, _note: None)
        return
    model = made(family)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([PROMPT])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)[0]
    engine = started(spec)
    heard = ask(engine, PROMPT, temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=1)
    said = [logprob.token for delta in heard.deltas() for logprob in delta.logprobs]
    assert said == [engine._output._token_text(token)[0] for token in expected[len(PROMPT) :].tolist()]
    assert len(said) == NEW
    engine.close()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_template_is_known_by_its_mark(family: Family) -> None:
    assert families.tool_family(family.mark) == family.tools
    assert families.thinking_style(family.mark) == family.thinking


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.name)
def test_other_families_are_tried_where_it_is_said(other: Other) -> None:
    assert other.word in (Path(__file__).parents[1] / other.file).read_text()


@pytest.mark.parametrize("wording", WORDINGS, ids=lambda wording: wording.file)
def test_the_document_says_what_is_tried(wording: Wording) -> None:
    text = (document.DOCS / wording.file).read_text(encoding="utf-8")
    assert text == document.render(wording), "make docs-models writes it anew"
    entries = [line[line.index("`- {") + 1 : line.index("}`") + 1] for line in text.splitlines() if "`- {" in line]
    assert len(entries) == len(FAMILIES) + len(OTHERS)
    config = parse_config("models:\n" + "\n".join(dict.fromkeys(entries)), Path("models.yml"))
    assert len(config.models) == len(entries)
    assert len(tokenizer()) > max(PROMPT)


def test_the_chinese_document_is_chinese() -> None:
    notes = {other.note for other in OTHERS if other.note}
    names = {each.name for each in (*FAMILIES, *OTHERS) if ", its" in each.name}
    refused = {family.refused for family in FAMILIES if family.refused}
    reasons = {reason for reason in refused if CHINESE.why(reason) == reason}
    missing = (notes | names | reasons) - CHINESE.words.keys()
    assert not missing, "tests/models/wordings.py has no Chinese for these"


def test_the_documents_refer_to_what_there_is() -> None:
    for wording in WORDINGS:
        for target in re.findall(r"\]\(([^)]+)\)", wording.head + wording.refused):
            name, _, anchor = target.partition("#")
            titles = re.findall(r"^#+ (.+)$", (document.DOCS / name).read_text(encoding="utf-8"), re.MULTILINE)
            assert not anchor or anchor in {title.lower().strip("`").replace(" ", "-") for title in titles}, target
