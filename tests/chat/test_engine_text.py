"""Text from tokens, piece by piece, is the text of all of them; stop strings cut wherever the pieces fall."""

from __future__ import annotations

import functools
from typing import Any

from chat.engine_kit import tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quintet_chat.engine.text import Detokenizer, StopFinder, TokenText

made = functools.cache(tokenizer)


def decode(ids: list[int]) -> str:
    text: str = made().decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def pieces(text: str) -> list[str]:
    stream = Detokenizer(decode, [])
    return [*(stream.push(token) for token in made()(text, add_special_tokens=False)["input_ids"]), stream.flush()]


@given(st.text(max_size=40))
@settings(deadline=None)
def test_pieces_add_up_to_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text.rstrip("\ufffd")


def test_no_piece_ends_within_a_character() -> None:
    got = pieces("a猫b🎉é")
    assert "".join(got) == "a猫b🎉é"
    assert "" in got
    assert all("\ufffd" not in piece for piece in got)


def test_a_character_that_never_completes_is_dropped_at_the_end() -> None:
    stream = Detokenizer(decode, [])
    ids = made()("ok猫", add_special_tokens=False)["input_ids"][:-1]
    assert "".join(stream.push(token) for token in ids) + stream.flush() == "ok"


def test_bytes_that_can_never_be_a_character_do_not_hold_the_text_back_for_ever() -> None:
    stream = Detokenizer(decode, [])
    broken = made()("猫", add_special_tokens=False)["input_ids"][1]
    said = "".join(stream.push(broken) for _ in range(40))
    assert len(said) >= 20


class Spaced:
    """Decodes like SentencePiece: the space before the first word of a text is not written."""

    words = ("<s>", "▁Hello", "▁world", "!")

    def __call__(self, ids: list[int]) -> str:
        return "".join(self.words[index] for index in ids).replace("▁", " ").removeprefix(" ")


def test_a_continuation_keeps_the_space_that_an_answer_of_its_own_has_not() -> None:
    alone, behind = Detokenizer(Spaced(), []), Detokenizer(Spaced(), [1])
    assert [alone.push(1), alone.push(2), alone.push(3)] == ["Hello", " world", "!"]
    assert [behind.push(2), behind.push(2)] == [" world", " world"]


def cut(text: str, stops: list[str]) -> str:
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


@given(
    st.lists(st.text("abc", max_size=3), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
@example(["ba", "c"], ["a", "bac"])
def test_a_stop_string_cuts_wherever_the_pieces_fall(parts: list[str], stops: list[str]) -> None:
    finder, out, come = StopFinder(stops), "", ""
    for part in parts:
        out += finder.push(part)
        come += part
        # What completes first stops first, even if a longer stop string began before it.
        assert cut(come, stops).startswith(out)
        if finder.found:
            break
    else:
        out += finder.flush()
    assert out == cut(come, stops)
    assert finder.found == any(stop in come for stop in stops)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    finder = StopFinder(["END"])
    assert [finder.push(piece) for piece in ("one E", "N", "two EN", "D!")] == ["one ", "", "ENtwo ", ""]
    assert finder.found


def test_single_tokens_have_their_exact_bytes() -> None:
    text: Any = TokenText(made())
    ids = made()("猫", add_special_tokens=False)["input_ids"]
    assert b"".join(bytes(text(token)[1]) for token in ids) == "猫".encode()
    assert text(ids[0])[0].startswith("\\x")
    hello = made()(" hello", add_special_tokens=False)["input_ids"]
    assert "".join(text(token)[0] for token in hello) == " hello"
    assert text(made().eos_token_id) == ("<|im_end|>", list(b"<|im_end|>"))
