"""Rows as tokens: what is learnt is what the assistant says, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TEMPLATE, make_tokenizer

from confide.errors import ConfigurationError, FormatError, Reason
from confide.trainer.encode import Encoded, RowEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from confide.training.recipe import TooLong
    from confide.training.row_shapes import Kind


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def encode(
    tokenizer: Any, kind: Kind, row: Any, *, most: int = 256, too_long: TooLong = "raise"
) -> list[tuple[str, str]]:
    """What each text of the row says, and what of it is learnt."""
    example = RowEncoder(tokenizer, kind, most, too_long).encode(6, json.dumps(row).encode())
    return [(tokenizer.decode(text.ids), learnt(tokenizer, text)) for text in example]


def learnt(tokenizer: Any, text: Encoded) -> str:
    return str(tokenizer.decode([i for i, on in zip(text.ids, text.learn, strict=True) if on]))


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def test_of_a_conversation_each_answer_is_learnt_with_its_end(tokenizer: Any) -> None:
    row = {
        "messages": [
            say("system", "the shop"),
            say("user", "when"),
            say("assistant", "at nine"),
            say("user", "and"),
            say("assistant", "at six", weight=1),
        ]
    }
    [(whole, answers)] = encode(tokenizer, "chat", row)
    assert whole == (
        "<|system|>the shop<|end|><|user|>when<|end|><|assistant|>at nine<|end|>"
        "<|user|>and<|end|><|assistant|>at six<|end|>"
    )
    assert answers == "at nine<|end|>at six<|end|>"


def test_an_answer_of_no_weight_is_read_and_not_learnt(tokenizer: Any) -> None:
    row = {
        "messages": [
            say("user", "when"),
            say("assistant", "at nine", weight=0),
            say("user", "sure"),
            say("assistant", "at six"),
        ]
    }
    [(whole, answers)] = encode(tokenizer, "chat", row)
    assert "at nine" in whole
    assert answers == "at six<|end|>"


def test_of_a_text_the_completion_is_learnt_with_an_end(tokenizer: Any) -> None:
    [(whole, answer)] = encode(
        tokenizer, "completion", {"prompt": "red,", "completion": " blue green"}
    )
    assert whole == "red, blue green<|end|>"
    assert answer == " blue green<|end|>"


def test_both_shapes_of_preferences_say_the_same(tokenizer: Any) -> None:
    turns = [say("user", "where")]
    openai = {
        "input": {"messages": turns},
        "preferred_output": [say("assistant", "red")],
        "non_preferred_output": [say("assistant", "blue")],
    }
    trl = {
        "prompt": turns,
        "chosen": [say("assistant", "red")],
        "rejected": [say("assistant", "blue")],
    }
    asked = "<|user|>where<|end|><|assistant|>"
    assert (
        encode(tokenizer, "preference", openai)
        == encode(tokenizer, "preference", trl)
        == [(f"{asked}red<|end|>", "red<|end|>"), (f"{asked}blue<|end|>", "blue<|end|>")]
    )


def test_parts_of_a_content_are_one_text(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "re"}, {"type": "text", "text": "d"}]
    row = {"messages": [say("user", "x"), say("assistant", parts)]}
    assert encode(tokenizer, "chat", row)[0][1] == "red<|end|>"


def test_a_template_sees_tools_and_the_arguments_of_calls() -> None:
    tokenizer = make_tokenizer(
        "{{ tools[0].function.name }}:{% for m in messages %}<|{{ m.role }}|>"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments.at }}{% endfor %}"
        "{{ m.content or '' }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "{% endif %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"at": "nine"}'}}
    row = {
        "tools": [{"type": "function", "function": {"name": "opening"}}],
        "messages": [say("user", "when"), say("assistant", None, tool_calls=[call])],
    }
    assert encode(tokenizer, "chat", row) == [
        ("opening:<|user|>when<|end|><|assistant|>nine<|end|>", "nine<|end|>")
    ]


def test_a_template_is_shown_no_tools_where_the_list_is_empty() -> None:
    tokenizer = make_tokenizer(
        "{% if tools is not none %}tools: {% endif %}"
        "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    )
    given = {"messages": [say("user", "when")], "tools": [], "parallel_tool_calls": True}
    row = {"input": given, "preferred_output": [say("assistant", "six")]}
    row["non_preferred_output"] = [say("assistant", "nine")]
    chosen, rejected = encode(tokenizer, "preference", row)
    assert (chosen[0], rejected[0]) == ("when<|end|>six<|end|>", "when<|end|>nine<|end|>")
    [(whole, _)] = encode(tokenizer, "chat", {"messages": [say("assistant", "six")], "tools": []})
    assert whole == "six<|end|>"


@given(
    before=st.text("red blué\n👋 ", min_size=1, max_size=20),
    answer=st.text("red blué\n👋", min_size=1, max_size=20),
)
def test_no_token_of_a_prompt_is_ever_learnt(before: str, answer: str) -> None:
    tokenizer = make_tokenizer()
    row = {"prompt": before, "completion": answer}
    try:
        [(whole, said)] = encode(tokenizer, "completion", row)
    except FormatError:
        return
    assert whole == f"{before}{answer}<|end|>"
    # A token over the border belongs to the prompt.
    assert f"{answer}<|end|>".endswith(said)


def test_a_row_that_is_too_long_is_refused_by_its_line_or_cut(tokenizer: Any) -> None:
    row = {"prompt": "red ", "completion": "blue " * 50}
    with pytest.raises(FormatError, match=r"line 7: \d+ tokens, at most 20; raise") as refused:
        encode(tokenizer, "completion", row, most=20)
    assert refused.value.reason is Reason.ROW_FORMAT
    [(whole, _)] = encode(tokenizer, "completion", row, most=20, too_long="truncate")
    assert len(tokenizer(whole)["input_ids"]) == 20


def test_where_cutting_leaves_nothing_to_learn_the_row_is_refused(tokenizer: Any) -> None:
    row = {"prompt": "red " * 50, "completion": "blue"}
    with pytest.raises(FormatError, match="line 7: nothing in it is left to learn"):
        encode(tokenizer, "completion", row, most=20, too_long="truncate")


def test_a_template_that_rewrites_what_it_wrote_is_refused() -> None:
    """As some do that drop the thoughts of earlier answers."""
    tokenizer = make_tokenizer(
        "{% for m in messages %}<|{{ m.role }}|>{% if loop.last and m.role == 'assistant' %}"
        "(thought){% endif %}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    one = [say("user", "a"), say("assistant", "red")]
    assert encode(tokenizer, "chat", {"messages": one})[0][1] == "(thought)red<|end|>"
    two = [*one, say("user", "b"), say("assistant", "blue")]
    with pytest.raises(FormatError, match="line 7: the chat template writes this conversation"):
        encode(tokenizer, "chat", {"messages": two})
    two[1]["weight"] = 0
    assert encode(tokenizer, "chat", {"messages": two})[0][1] == "(thought)blue<|end|>"


def test_a_template_is_given_no_clock() -> None:
    dated = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}" + TEMPLATE
    row = {"messages": [say("user", "x"), say("assistant", "red")]}
    assert encode(make_tokenizer(dated), "chat", row)[0][0].startswith("<|user|>")
    asking = "{{ strftime_now('%Y') }}" + TEMPLATE
    with pytest.raises(FormatError, match="does not take this conversation"):
        encode(make_tokenizer(asking), "chat", row)


def test_what_a_template_refuses_is_refused_without_its_words() -> None:
    tokenizer = make_tokenizer("{{ raise_exception('no ' ~ messages[0].content) }}")
    row = {"messages": [say("user", "private words"), say("assistant", "red")]}
    with pytest.raises(FormatError) as refused:
        encode(tokenizer, "chat", row)
    assert "private" not in str(refused.value)


def test_a_conversation_needs_a_template() -> None:
    row = {"messages": [say("user", "x"), say("assistant", "red")]}
    with pytest.raises(ConfigurationError, match="no chat template"):
        encode(make_tokenizer(None), "chat", row)
