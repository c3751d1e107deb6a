"""Rows: what is one, what is none, and that an error says where without saying what."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dataset_rows import (
    ASSISTANT,
    CALL,
    CHAT,
    COMPLETION,
    OPENAI_PREFERENCE,
    TOOL,
    TRL_PREFERENCE,
    USER,
    lines,
    rows_of,
)

from confide.training.lines import MAX_ROW_BYTES, Line, LineSplitter
from confide.training.rows import MAX_ROWS, RowError, RowReader, parse_row


def refused(raw: bytes) -> RowError:
    with pytest.raises(RowError) as caught:
        rows_of(raw)
    return caught.value


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


GOOD: dict[str, tuple[str, Any]] = {
    "chat": ("chat", CHAT),
    "chat with tools": (
        "chat",
        chat(
            {"role": "developer", "content": "Be brief.", "name": "d"},
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "here", "tool_call_id": "c1"},
            {**ASSISTANT, "weight": 1, "refusal": None},
            tools=[TOOL],
            parallel_tool_calls=False,
        ),
    ),
    "chat of parts": (
        "chat",
        chat({"role": "user", "content": [{"type": "text", "text": "a"}]}, ASSISTANT),
    ),
    "chat with a turn that is not learnt": ("chat", chat({**ASSISTANT, "weight": 0}, ASSISTANT)),
    "chat without content beside calls": (
        "chat",
        chat(USER, {"role": "assistant", "tool_calls": [CALL]}),
    ),
    "completion": ("completion", COMPLETION),
    "completion from nothing": ("completion", {"prompt": "", "completion": "x"}),
    "completion of messages": ("completion", {"prompt": [USER], "completion": [ASSISTANT]}),
    "preference, OpenAI": ("preference", OPENAI_PREFERENCE),
    # As the example of OpenAI's guide has it.
    "preference, OpenAI, without tools": (
        "preference",
        {
            **OPENAI_PREFERENCE,
            "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
        },
    ),
    "chat without tools": ("chat", chat(USER, ASSISTANT, tools=[])),
    "preference, TRL": ("preference", TRL_PREFERENCE),
    "preference of messages": (
        "preference",
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]},
    ),
}


@pytest.mark.parametrize(("kind", "row"), GOOD.values(), ids=GOOD)
def test_a_row_of_each_shape_is_read(kind: str, row: Any) -> None:
    (found,) = rows_of(lines(row))
    assert (found.kind, found.value, found.index) == (kind, row, 0)
    assert json.loads(found.record) == row


BAD: dict[str, tuple[Any, str, str]] = {
    "not an object": (["x"], "", "no JSON object"),
    "of no kind": ({"words": "x"}, "", "no known kind"),
    "a text alone": ({"text": "x"}, "", "looks like text without an answer"),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "x"}]}, "", "like ShareGPT's: name"),
    "Alpaca": ({"instruction": "x", "output": "y"}, "", "looks like Alpaca's: write"),
    "a misspelt kind": ({"mesages": []}, "", "one looks like `messages`"),
    "a member more": ({**CHAT, "extra": 1}, "", "1 unknown member(s)"),
    "a misspelt member": ({**CHAT, "tool": [TOOL]}, "", "one looks like `tools`"),
    "no prompt": ({"completion": "x"}, "prompt", "missing"),
    "a misspelt prompt": ({"promt": "", "completion": "x"}, "prompt", "looks like `prompt`"),
    "an empty completion": ({"prompt": "x", "completion": ""}, "completion", "empty"),
    "a number for a text": ({"prompt": "x", "completion": 3}, "completion", "no text"),
    "text and messages": ({"prompt": "x", "completion": [ASSISTANT]}, "completion", "no text"),
    "messages and text": ({"prompt": [USER], "completion": "x"}, "completion", "not a list"),
    "a user in a completion": (
        {"prompt": [USER], "completion": [USER]},
        "completion[0].role",
        "not one of assistant, tool",
    ),
    "no messages": (chat(), "messages", "not a list of 1"),
    "messages as text": ({"messages": "x"}, "messages", "not a list"),
    "a message as text": (chat("x"), "messages[0]", "no JSON object"),
    "an unknown role": (chat(USER, {"role": "bot", "content": ""}), "messages[1].role", "not one"),
    "a role that is no text": (chat({"role": [], "content": ""}), "messages[0].role", "not one"),
    "no role": (chat({"content": "x"}), "messages[0].role", "not one of"),
    "no content": (chat({"role": "user"}, ASSISTANT), "messages[0].content", "missing"),
    "null content": (chat(USER, {**ASSISTANT, "content": None}), "messages[1].content", "neither"),
    "no parts": (chat({**USER, "content": []}, ASSISTANT), "messages[0].content", "neither"),
    "an image": (
        chat({**USER, "content": [{"type": "image_url", "text": ""}]}, ASSISTANT),
        "messages[0].content[0].type",
        "not `text`",
    ),
    "an unknown member of a message": (
        chat({**USER, "contents": "x"}, ASSISTANT),
        "messages[0]",
        "looks like `content`",
    ),
    "the user speaks last": (chat(ASSISTANT, USER), "messages[1].role", "not the assistant's"),
    "nothing is learnt": (chat(USER, {**ASSISTANT, "weight": 0}), "messages", "nothing is learnt"),
    "half a weight": (chat(USER, {**ASSISTANT, "weight": 0.5}), "messages[1].weight", "neither 0"),
    "a weight of true": (chat(USER, {**ASSISTANT, "weight": True}), "messages[1].weight", "nei"),
    "the weight of a user": (chat({**USER, "weight": 1}, ASSISTANT), "messages[0]", "unknown"),
    "a tool without its call": (
        chat({"role": "tool", "content": "x"}, ASSISTANT),
        "messages[0].tool_call_id",
        "missing",
    ),
    "a call of nothing": (
        chat(USER, {**ASSISTANT, "tool_calls": []}),
        "messages[1].tool_calls",
        "not a list of 1",
    ),
    "arguments that are no text": (
        chat(USER, {**ASSISTANT, "tool_calls": [{**CALL, "function": {"name": "f"}}]}),
        "messages[1].tool_calls[0].function.arguments",
        "missing",
    ),
    "too many tools": ({**CHAT, "tools": [TOOL] * 129}, "tools", "not a list of at most 128"),
    "a tool of another type": ({**CHAT, "tools": [{**TOOL, "type": "x"}]}, "tools[0].type", "not"),
    "parameters that are a text": (
        {**CHAT, "tools": [{"type": "function", "function": {"name": "f", "parameters": ""}}]},
        "tools[0].function.parameters",
        "no JSON object",
    ),
    "a flag that is a number": ({**CHAT, "parallel_tool_calls": 1}, "parallel_tool_calls", "true"),
    "no rejected": ({"prompt": "x", "chosen": "y"}, "rejected", "missing"),
    "no prompt to choose for": ({"chosen": "y", "rejected": "z"}, "prompt", "missing"),
    "two preferred": (
        {**OPENAI_PREFERENCE, "preferred_output": [ASSISTANT, ASSISTANT]},
        "preferred_output",
        "not a list of one",
    ),
    "a weight in a preference": (
        {**OPENAI_PREFERENCE, "preferred_output": [{**ASSISTANT, "weight": 1}]},
        "preferred_output[0]",
        "unknown",
    ),
    "an input without messages": ({**OPENAI_PREFERENCE, "input": {}}, "input.messages", "missing"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "path", "what"), BAD.values(), ids=BAD)
def test_what_is_no_row_is_refused_with_its_place(row: Any, path: str, what: str) -> None:
    error = refused(lines(row))
    assert (error.line, error.path) == (1, path)
    assert what in error.what
    assert error.todo in error.what


FILES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 0, "no row"),
    "a line end alone": (b"\n", 1, "the line is empty"),
    "an empty line between": (lines(CHAT) + b"\r\n" + lines(CHAT), 2, "the line is empty"),
    "a byte order mark": (b"\xef\xbb\xbf" + lines(CHAT), 1, "byte order mark"),
    "UTF-16": (lines(CHAT).decode().encode("utf-16"), 1, "begins with UTF-16"),
    "UTF-16 without a mark": (lines(CHAT).decode().encode("utf-16-le"), 1, "zero byte"),
    "Latin-1": (b'{"prompt":"\xe9","completion":"x"}', 1, "not UTF-8 at 12"),
    "gzip": (b"\x1f\x8b\x08\0rest", 1, "gzip"),
    "a list over lines": (b"[\n" + lines(CHAT), 1, "JSON list"),
    "a list in a line": (b"[" + lines(CHAT).strip() + b"]", 1, "no JSON object"),
    "cut": (lines(CHAT)[:-10], 1, "not JSON"),
    "a name twice": (b'{"prompt":"a","prompt":"b","completion":"c"}', 1, "a member twice"),
    "NaN": (b'{"prompt":NaN,"completion":"c"}', 1, "NaN"),
    "a great number": (b'{"prompt":9007199254740993,"completion":"c"}', 1, "integer outside"),
    "a number that is a great integer": (b'{"prompt":1e20,"completion":"c"}', 1, "integer outside"),
    "half a pair": (rb'{"prompt":"\ud800","completion":"c"}', 1, "half a surrogate pair"),
    "too deep": (b'{"prompt":' + b"[" * 40 + b"]" * 40 + b"}", 1, "deeper than 32"),
    "two kinds": (lines(CHAT, COMPLETION), 2, "a completion row after chat rows"),
}


@pytest.mark.parametrize(("raw", "line", "what"), FILES.values(), ids=FILES)
def test_a_file_that_is_none_is_refused_with_its_line(raw: bytes, line: int, what: str) -> None:
    error = refused(raw)
    assert error.line == line
    assert what in error.what


def test_no_error_repeats_the_row() -> None:
    canary = "canary-7d1f"
    rows: list[Any] = [
        {canary: 1},
        {**CHAT, canary: 1},
        chat({"role": canary, "content": canary}),
        chat({**USER, canary: canary}, ASSISTANT),
        {"prompt": canary, "completion": ""},
        {**CHAT, "tools": [{"type": canary}]},
    ]
    raw = lines(*rows) + f'{{"prompt": "{canary}\n"{canary}": "\ud83d'.encode("utf-8", "replace")
    found = list(RowReader().read([raw]))
    assert len(found) == len(rows) + 2
    for error in found:
        assert isinstance(error, RowError)
        assert canary not in str(error) + repr(error) + error.path


def test_the_rows_after_a_broken_one_are_still_read() -> None:
    raw = lines(COMPLETION) * 300 + b"{broken\n" + lines(COMPLETION) * 200
    found = list(RowReader().read([raw]))
    (error,) = (each for each in found if isinstance(each, RowError))
    assert error.line == 301
    assert len(found) == 501


@pytest.mark.slow
def test_one_broken_row_in_a_million_is_found() -> None:
    good = lines(COMPLETION)
    pieces = [good * 777_776, b"{broken}\n", good * 222_223]
    faults = [each for each in RowReader().read(pieces) if isinstance(each, RowError)]
    assert [fault.line for fault in faults] == [777_777]


def test_a_row_of_ten_megabytes_is_refused_and_never_held() -> None:
    splitter = LineSplitter()
    for _ in range(160):
        assert not list(splitter.feed(b"x" * 65536))
        assert sum(len(piece) for piece in splitter._held) <= MAX_ROW_BYTES
    assert list(splitter.feed(b"\n{}\n")) == [Line(1, None), Line(2, b"{}")]
    with pytest.raises(RowError, match=f"line 1: longer than {MAX_ROW_BYTES} bytes"):
        parse_row(Line(1, None))


@pytest.mark.parametrize("cut", range(1, 12))
def test_lines_are_the_same_wherever_the_file_is_cut(cut: int) -> None:
    raw = b"ab\n\nabcd\nabcde\nabc\n\nabcdef"
    splitter = LineSplitter(max_bytes=4)
    pieces = [raw[at : at + cut] for at in range(0, len(raw), cut)]
    found = [line for piece in pieces for line in splitter.feed(piece)] + list(splitter.end())
    whole = [b"ab", b"", b"abcd", None, b"abc", b"", None]
    assert found == [Line(number, each) for number, each in enumerate(whole, 1)]


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "bot", "", 1])
@pytest.mark.parametrize("content", ["", "a", None, [], [{"type": "text", "text": "a"}]])
def test_a_message_of_role_and_content_alone_is_judged_like_one_with_a_name(
    role: Any, content: Any
) -> None:
    def verdicts(message: dict[str, Any]) -> list[tuple[Any, ...]]:
        rows = [
            chat(message),
            chat(message, ASSISTANT),
            {"prompt": [message], "completion": [message]},
            {**OPENAI_PREFERENCE, "preferred_output": [message]},
        ]
        found = [next(RowReader().read([lines(row)])) for row in rows]
        return [
            (each.path, each.what) if isinstance(each, RowError) else (each.kind,) for each in found
        ]

    message = {"role": role, "content": content}
    assert verdicts(message) == verdicts({**message, "name": "n"})


def test_a_refusal_does_not_depend_on_the_order_of_members() -> None:
    more = {"promp": 0, "complection": 0}
    one, other = (
        refused(lines({"prompt": "a", "completion": "b", **names}))
        for names in (more, dict(reversed(more.items())))
    )
    assert one.what == other.what


def test_a_row_of_a_hundred_thousand_unknown_names_is_refused_without_much_work() -> None:
    names = {f"promp{number}": 0 for number in range(100_000)}
    error = refused(lines({**names, "prompt": "x", "completion": "y"}))
    assert "100000 unknown member(s) (one looks like `prompt`)" in error.what


def test_a_row_of_just_the_limit_is_read() -> None:
    overhead = len(lines({"prompt": "", "completion": "x"})) - 1
    row = {"prompt": "y" * (MAX_ROW_BYTES - overhead), "completion": "x"}
    assert rows_of(lines(row))[0].size == MAX_ROW_BYTES
    row["prompt"] += "y"
    assert "longer than" in refused(lines(row)).what


def test_more_rows_than_the_limit_are_refused() -> None:
    reader = RowReader()
    reader._lines._number = MAX_ROWS - 1
    first, second = reader.feed(lines(COMPLETION, COMPLETION))
    assert not isinstance(first, RowError)
    assert isinstance(second, RowError)
    assert "more than" in second.what


def test_the_last_line_needs_no_end_and_carriage_returns_are_white_space() -> None:
    plain = rows_of(lines(CHAT, CHAT))
    assert [row.record for row in rows_of(lines(CHAT, CHAT)[:-1])] == [r.record for r in plain]
    windows = rows_of(lines(CHAT, CHAT).replace(b"\n", b"\r\n"))
    assert [row.record for row in windows] == [row.record for row in plain]
