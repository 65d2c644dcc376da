"""Custom tools' grammars: what xgrammar lets be written is what the expression or the Lark grammar says, as JSON."""

from __future__ import annotations

import json
import random
import re
import time

import pytest
from chat.accepts import Accepts
from quintet_chat.tools import FAMILIES
from quintet_chat.tools.base import CallArguments, CallStart, ToolFunction
from quintet_chat.tools.custom import InputReader, arguments_of, function_of
from quintet_chat.tools.text_grammar import GrammarError, without

PATCH = r"""
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change?
filename: /(.+)/
add_line: "+" /(.*)/ LF -> line
change: (("@@" | "@@ " /(.+)/) LF | ("+" | "-" | " ") /(.*)/ LF)+
%import common.LF
"""
PATCHED = (
    '*** Begin Patch\n*** Add File: a "b".py\n+print("\\n")\n+\n*** Update File: x\n@@ def f():\n-a\n+b\n*** End Patch'
)
SUMS = """
start: sum  // of anything
?sum.2: sum ("+" | "-") product
    | product
product: product [ "*" ] SIGN? atom | atom
!atom: NUMBER -> number
    | "(" sum ")"
    | HEX~2..3
    | /x{2}/i "AND"i "b".."d"
SIGN: "-"
HEX: "0" "x" ("a".."f")
%import common (NUMBER, WS_INLINE)
%ignore WS_INLINE
"""


@pytest.fixture(scope="module")
def accepts() -> Accepts:
    return Accepts()


def held(accepts: Accepts, offered: ToolFunction, given: str) -> bool:
    family = FAMILIES["hermes"]
    return accepts(family.calls([offered], False), family.call_text("f", arguments_of(given)))


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r"^\d{3}-[a-f]+$", ["123-a", "123-fade", "12-a", "123-", "123-g"]),
        (r'"\\[\n\t"]?', ['"\\', '"\\\n', '"\\"', '"', "\\"]),
        (r"(?i:ab)c|[^a-z\\]{2}", ["ABc", "abC", "A\n", "Z\\", 'Z"', "é猫"]),
        (r"((a|b|[a-c ]+)*)*|((x*)+y)+", ["", "ab c", "y", "xxyy", "xx", "d"]),
        (r"(?s).{1,2}", ["\n", "ab", "", "abc"]),
        (r"a.c", ["abc", "a\nc", "a\\c", 'a"c']),
        (r"\w+?\s\W\S", ["ab_1 -x", "ab  ", "a\n<猫"]),
        (r"(?P<name>a|)b*", ["", "a", "abb", "ba"]),
        (r"[\x00\x1f]", ["\x00", "\x1f", "a"]),
        ("(?:a*b?)" * 20 + "c" + "a?" * 40, ["c", "ab" * 20 + "c" + "a" * 40]),
    ],
)
def test_an_expression_holds_the_whole_input(accepts: Accepts, pattern: str, texts: list[str]) -> None:
    offered = function_of("f", "regex", pattern)
    assert any(re.fullmatch(pattern, text) for text in texts)
    for text in texts:
        assert held(accepts, offered, text) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize(
    ("definition", "good", "bad"),
    [
        (PATCH, [PATCHED, PATCHED + "\n"], [PATCHED[:-9], PATCHED.replace("+print", "print"), ""]),
        (
            SUMS,
            ["1", " 1 + ( 2.5 -3)*-4 ", "0xa0xb", "2*0xa0xb0xf", "Xxandc", "1 2"],
            ["1 +", "(1", "0xa", "xxANDe", "1\n"],
        ),
        ('start: a\na: b? "."\nb: "x" b | "y"', [".", "xxy."], ["x.", "y"]),
        ("start: ESCAPED_STRING\n%import common.ESCAPED_STRING", ['"a\\"b"', '""'], ['"a"b"', "a"]),
        ('start: _A "\\n" \n_A: /[ab]\\/[^\\/]/', ["a/x\n"], ["a//\n"]),
    ],
)
def test_a_lark_grammar_holds_the_input(accepts: Accepts, definition: str, good: list[str], bad: list[str]) -> None:
    offered = function_of("f", "lark", definition)
    assert [text for text in good if not held(accepts, offered, text)] == []
    assert [text for text in bad if held(accepts, offered, text)] == []


@pytest.mark.parametrize(
    ("syntax", "definition", "said"),
    [
        ("regex", "(?=a)b", "looking around"),
        ("regex", r"(a)\1", "reference"),
        ("regex", "[a", "no regular expression"),
        ("regex", r"\p{L}", "no regular expression"),
        ("regex", r"a\bc", "anchor"),
        ("regex", "(a{100}){1000}", "more than 16000"),
        ("regex", "(" * 5000, "no regular expression"),
        ("regex", "(" * 400 + "a" + ")" * 400, "nested too deep"),
        ("regex", r"[\ud800-\ud900]", "surrogate"),
        ("regex", "(a?b*c?)*", "'pattern' repeats what may be empty"),
        ("regex", "(a?b+c?)+", "'pattern' repeats"),
        ("regex", "a*b?" * 21, "'pattern' has more than 40 parts side by side"),
        ("regex", "a+" * 41, "that may be empty or are endless"),
        ("lark", "start: " + "a " * 14 + '\na: b b b\nb: c?\nc: "x"', "'start' has more than 40 parts"),
        ("lark", 'start: l*\nl: /[a-z]*/ " "?', "'start' repeats"),
        ("lark", 'start: s\ns: s s | "a"', "'s' may be itself twice"),
        ("lark", 'start: s\ns: t s? | "a"\nt: "b"? s', "'s' may be itself twice"),
        ("lark", 'start: s\ns: s+ | "a"', "'s' repeats"),
        ("lark", "start: a0\n" + "\n".join(f"a{n}: a{n + 1}" for n in range(300)) + '\na300: "x"', "more than 200"),
        ("lark", "start: a", "'a', which 'start' names, is not defined"),
        ("lark", 'x: "a"', "no rule 'start'"),
        ("lark", 'start: "a" start', "'start' has no end"),
        ("lark", 'start: "a"\nstart: "b"', "twice"),
        ("lark", 'start: "a"\n%declare B', "line 2: %declare"),
        ("lark", 'start: sep{"a"}', "templates"),
        ("lark", "start: X\n%import python.X", "python.X"),
        ("lark", 'start: "a', "line 1"),
        ("lark", 'start: "ab".."c"', "one character"),
        ("lark", 'start: "a"~3..1', "number of times"),
        ("lark", f'start: "a"~{"9" * 5000}', "more than 16000"),
        ("lark", "start: " + "(" * 60 + '"a"' + ")" * 60, "nested"),
        ("lark", 'start: ("a"', "line 1"),
        ("lark", "start: /(?<=a)b/", "looking around"),
    ],
)
def test_what_no_grammar_is_made_of_is_said(syntax: str, definition: str, said: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(said)):
        function_of("f", syntax, definition)  # type: ignore[arg-type]


def test_the_longest_definitions_take_no_time_and_make_no_more_of_themselves() -> None:
    """A request is read where all others are."""
    listed = "".join(chr(0x4E00 + 2 * number) for number in range(10_000))
    names = " | ".join(f"a{number}" for number in range(100))
    rules = "\n".join(f'a{number}: ({names} | "x{number}")+' for number in range(100))
    began = time.process_time()
    assert len(function_of("f", "regex", f"[^{listed}]").ebnf) < 300_000
    assert len(function_of("f", "lark", f"start: {'X ' * 10_000}\nX: /[{listed}]/").ebnf) < 400_000
    with pytest.raises(GrammarError, match="in too many repetitions"):
        function_of("f", "lark", f'start: a0* "x"\n{rules}')
    assert time.process_time() - began < 5  # a tenth of it; without limits half a minute


def test_a_class_is_without_what_is_taken_from_it() -> None:
    draw = random.Random(1)
    for _ in range(300):
        ranges, taken = (
            [(first, first + draw.randrange(8)) for first in draw.choices(range(60), k=draw.randrange(9))]
            for _ in range(2)
        )
        left, gone = ({code for first, last in some for code in range(first, last + 1)} for some in (ranges, taken))
        found = without(ranges, taken)
        assert {code for first, last in found for code in range(first, last + 1)} == left - gone
        assert all(first <= last for first, last in found)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_calls_with_the_grammars_text(accepts: Accepts, name: str) -> None:
    offered = function_of("f", "regex", r'<a href="x">\n</parameter>|</arg_value>')
    family, given = FAMILIES[name], '<a href="x">\n</parameter>'
    call = family.call_text("f", arguments_of(given)).removesuffix("<|call|>")
    if hasattr(family, "markup"):  # where texts are written as they are, one with a grammar is not
        call = call.replace(given, json.dumps(given))
    assert accepts(family.calls([offered], False), call)
    assert not accepts(family.calls([offered], False), call.replace("href", "src"))
    parser = family.parser([offered])
    pieces = [piece for letter in call for piece in parser.feed(letter)] + parser.close()
    assert [piece.name for piece in pieces if isinstance(piece, CallStart)] == ["f"]
    arguments = "".join(piece.text for piece in pieces if isinstance(piece, CallArguments))
    assert json.loads(arguments) == {"input": given}


@pytest.mark.parametrize("ascii", [True, False])
def test_the_text_is_read_out_of_its_json(ascii: bool) -> None:
    given = 'He said "x\\y"\n\tz é 😀😀 \x01'
    written = json.dumps({"input": given}, ensure_ascii=ascii)
    draw = random.Random(1)
    for _ in range(100):
        reader, rest, found = InputReader(), written, ""
        while rest:
            size = draw.choice([1, 1, 2, 3, 9])
            piece, rest = rest[:size], rest[size:]
            found += reader.feed(piece)
        assert found == given


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"a\ud83dx\ude00\ud83d\ud83d\ude00", "a\ufffdx\ufffd\ufffd😀"),
        (r"\ud83d\n\ud83d\u0041\\ud83d", "\ufffd\n\ufffdA\\ud83d"),
        (r"\q\u12\uzzzz\\q", r"\q\u12\uzzzz\q"),
    ],
)
def test_escapes_that_are_no_character_are_read_all_the_same(written: str, text: str) -> None:
    """A grammar of JSON lets halves of characters through, and free text may come to be a call without a grammar."""
    given = f'{{"input": "{written}"}}'
    for size in range(1, len(given) + 1):
        reader = InputReader()
        assert "".join(reader.feed(given[start : start + size]) for start in range(0, len(given), size)) == text
