"""Public names in answers, and the reported usage: docs/protocols/inference.md §3.2, §4.5."""

from __future__ import annotations

import json

import pytest

from confide.errors import FormatError, Reason
from confide.inference.digest import Usage, read_usage
from confide.inference.models import ServedModel
from confide.inference.rewrite import ModelRenamer, UsageTail, rename_model


def _served(upstream_name: str, name: str = "public") -> ServedModel:
    return ServedModel(
        name=name, weights_digest="", manifest_digest="", upstream_name=upstream_name, created=0
    )


@pytest.mark.parametrize(
    ("text", "renamed"),
    [
        ('{"model":"a/b"}', '{"model":"public"}'),
        ('{"model" :\n"a\\/b@main"}', '{"model" :\n"public"}'),
        ('{"response":{"model":"a/b"}}', '{"response":{"model":"public"}}'),
        ('{"model":"a/bc"}', None),
        ('{"model":"other"}', None),
        ('{"my model":"a/b"}', None),
        (r'{"text":"say \"model\":\"a/b\" now"}', None),
        (r'{"a\"model":"a/b"}', None),
        ('["model","a/b"]', None),
    ],
)
def test_only_the_member_with_the_engines_name_is_renamed(text: str, renamed: str | None) -> None:
    out = rename_model(text.encode(), _served("a/b")).decode()
    assert out == (text if renamed is None else renamed)


@pytest.mark.parametrize("spelling", ['"mod\u00e8le"', '"mod\\u00e8le"'])
def test_names_beyond_ascii(spelling: str) -> None:
    served = _served("mod\u00e8le", r"back\slash")
    out = rename_model(f'{{"model":{spelling}}}'.encode(), served)
    assert json.loads(out) == {"model": r"back\slash"}


def test_a_line_without_end_is_capped() -> None:
    renamer = ModelRenamer(_served("up"))
    piece = b"x" * (1 << 20)
    for _ in range(4):
        assert renamer.feed(piece) == b""
    with pytest.raises(FormatError) as caught:
        renamer.feed(b"x")
    assert caught.value.reason is Reason.STREAM_FORMAT


@pytest.mark.parametrize(
    ("tail", "usage"),
    [
        (b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}', Usage(1, 2)),
        (
            b'{"usage" : {"input_tokens":1,"input_tokens_details":{"a":1},"output_tokens":2}}',
            Usage(1, 2),
        ),
        (b'data: {"usage":null}\n\ndata: {"usage":{"prompt_tokens":5}}', Usage(5, 0)),
        (b'{"usage":{"prompt_tokens":1}}{"usage":{"prompt_tokens":9}}', Usage(9, 0)),
        (b'{"text":"\\"usage\\":{\\"prompt_tokens\\":1}"}', None),
        (b'{"usage":{"prompt_tokens":-1}}', None),
        (b'{"usage":{"prompt_tokens":true}}', None),
        (b'{"usage":{"prompt_tokens":1,"prompt_tokens":2}}', None),
        (b'{"usage":{}}', None),
        (b"", None),
    ],
)
def test_reported_usage(tail: bytes, usage: Usage | None) -> None:
    reader = UsageTail()
    for _ in range(5000):
        reader.feed(b"x" * 20)
    reader.feed(tail)
    assert reader.usage() == usage


def test_usage_that_is_no_object() -> None:
    assert read_usage([1, 2]) is None
