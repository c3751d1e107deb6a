"""The short way to read a row says what the long one says, or nothing. dataset.md §1, 2.1."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from confide.errors import FormatError
from confide.training.lines import Line
from confide.training.row_shapes import Flaw
from confide.training.rows import Row, RowError, _read_any, _read_plain, _write_simple, parse_row

_ROLES = ["system", "developer", "user", "assistant", "tool", "bot", "", 1, None]
_TEXTS: st.SearchStrategy[Any] = st.text() | st.sampled_from(["", 'a"b', "a\\b", "a\nb\t\x7f", "é"])
_OTHERS: st.SearchStrategy[Any] = st.sampled_from([None, 0, 1.0, True, [], {}, [{"type": "text"}]])
_MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(_ROLES[:4]) | st.sampled_from(_ROLES), "content": _TEXTS | _OTHERS},
    optional={"name": _TEXTS, "weight": st.sampled_from([0, 1]), "contents": _TEXTS},
)
_SIMPLE = st.fixed_dictionaries({"role": st.sampled_from(_ROLES[:4]), "content": _TEXTS})
_ANSWER = {"role": "assistant", "content": "a"}
_LISTS: st.SearchStrategy[Any] = st.lists(_SIMPLE, max_size=4) | st.lists(_MESSAGES, max_size=4)
_ROWS: st.SearchStrategy[Any] = (
    st.fixed_dictionaries({"messages": _LISTS | _OTHERS}, optional={"tools": _OTHERS})
    | st.fixed_dictionaries({"prompt": _TEXTS, "completion": _TEXTS}, optional={"x": _TEXTS})
    | st.fixed_dictionaries({"prompt": _TEXTS, "chosen": _TEXTS, "rejected": _TEXTS})
    | st.dictionaries(
        st.sampled_from(["messages", "prompt", "completion", "chosen", "rejected", "é"]),
        _TEXTS | _LISTS | _OTHERS,
    )
    | _OTHERS
)


def _require_one_verdict(raw: bytes) -> None:
    line = Line(1, raw)
    try:
        known = _read_any(raw, None)
    except (FormatError, Flaw):
        # Refused, for a reason that the long way alone gives.
        try:
            found: object = parse_row(line)
        except RowError as error:
            found = error.line
        assert found == 1
        return
    plain = _read_plain(raw)
    assert _write_simple(plain) in (None, known)
    assert _read_any(raw, plain) == known
    assert parse_row(line) == Row(0, *known, len(raw))


@settings(deadline=None)
@given(_ROWS, st.booleans(), st.sampled_from([None, 1]))
@example({"messages": [{"role": "user", "content": ""}]}, True, None)
@example({"messages": []}, True, None)
@example({"messages": [{"role": "tool", "content": ""}, _ANSWER]}, True, None)
@example({"messages": [{"role": "bot", "content": ""}, _ANSWER]}, True, None)
@example({"messages": [{**_ANSWER, "name": "n"}]}, True, None)
@example({"messages": [{**_ANSWER, "x": "n"}]}, True, None)
@example({"messages": [{**_ANSWER, "weight": 0}]}, True, None)
@example({"messages": [{"role": "assistant", "content": ""}] * 4097}, True, None)
@example({"prompt": "", "completion": ""}, True, None)
@example({"prompt": "a", "completion": "\ud800"}, True, None)
@example({"prompt": "a", "completion": "b", "x": "c"}, True, None)
@example({"prompt": "a", "chosen": "b", "rejected": ""}, True, None)
def test_rows_and_what_looks_like_rows(row: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(row, ensure_ascii=ascii_only, indent=indent).replace("\n", " ")
    _require_one_verdict(text.encode("utf-8", "surrogatepass"))


@settings(deadline=None)
@given(_ROWS, st.data())
def test_rows_with_a_piece_put_in_or_taken_out(row: Any, data: st.DataObject) -> None:
    raw = json.dumps(row).encode()
    at = data.draw(st.integers(0, len(raw)))
    piece = st.sampled_from(
        [b'"', b"\\", b"\\u0041", b'"prompt":"x",', b',"role":"user"', b"{", b"1"]
    )
    put = data.draw(piece | st.binary(max_size=2))
    _require_one_verdict(raw[:at] + put + raw[at + data.draw(st.integers(0, 3)) :])


def test_the_commonest_rows_go_the_short_way() -> None:
    user, assistant = ({"role": role, "content": 'a "b"\n'} for role in ("user", "assistant"))
    for row in (
        {"messages": [user, assistant]},
        {"prompt": "", "completion": "é"},
        {"rejected": "a", "prompt": "b", "chosen": "c"},
    ):
        raw = json.dumps(row, indent=1).encode()
        assert _write_simple(_read_plain(raw)) == _read_any(raw, None)
