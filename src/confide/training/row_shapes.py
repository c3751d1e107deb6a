"""What members a row may have: messages, tools, and the three kinds. dataset.md 1.3 to 1.6.

A row is hostile, and private: a `Flaw` names a place in our own words and never repeats the row.
"""

from __future__ import annotations

from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal, NoReturn, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from confide.wire.json import JsonValue

__all__ = ["KINDS", "Flaw", "Kind", "require_shape"]

Kind: TypeAlias = Literal["chat", "completion", "preference"]
KINDS: Final[tuple[Kind, ...]] = ("chat", "completion", "preference")

_Object: TypeAlias = "dict[str, JsonValue]"
_Check: TypeAlias = "Callable[[JsonValue, str], None]"

_MAX_MESSAGES: Final = 4096
_MAX_TOOLS: Final = 128
# A name of the row is compared with ours; longer ones are no misspelling.
_MAX_NAME: Final = 64
_MAX_GUESSES: Final = 8
_KIND_HELP: Final = (
    "a row has `messages`, or `prompt` and `completion`, or `prompt`, `chosen` and `rejected`, or "
    "`input`, `preferred_output` and `non_preferred_output`"
)
# What rows of other programs hold, and what those rows are.
_ELSEWHERE: Final = {
    "conversations": "ShareGPT's: name it `messages`, `from` `role`, `value` `content`",
    "instruction": "Alpaca's: write instruction and input as `prompt`, output as `completion`",
    "text": "text without an answer: say what is given and what is to be learnt",
}


class Flaw(Exception):
    """A row is not of its shape: `path` inside the row, `what` is wrong, and what `todo`."""

    def __init__(self, path: str, what: str, todo: str) -> None:
        self.path = path
        self.what = what
        self.todo = todo
        super().__init__(what)


def _flaw(path: str, what: str, todo: str) -> NoReturn:
    raise Flaw(path, what, todo)


def require_shape(row: JsonValue) -> Kind:
    """Return the kind of `row`; `Flaw` where it is of none, or not as its kind has it."""
    if not isinstance(row, dict):
        _flaw("", "the row is no JSON object", "write one object on each line, without a list")
    if "messages" in row:
        _require_chat(row)
        return "chat"
    if "completion" in row:
        _require_completion(row)
        return "completion"
    if "chosen" in row or "rejected" in row:
        _require_trl_preference(row)
        return "preference"
    if "preferred_output" in row or "non_preferred_output" in row:
        _require_openai_preference(row)
        return "preference"
    whose = next((f" (it looks like {_ELSEWHERE[name]})" for name in _ELSEWHERE if name in row), "")
    _flaw("", f"the row is of no known kind{whose or _guess(row, _ALL_NAMES)}", _KIND_HELP)


# --- the three kinds ------------------------------------------------------------------------------


def _require_chat(row: _Object) -> None:
    _members(row, "", required=_MESSAGES, optional=_TOOLS)
    messages = row["messages"]
    _messages(messages, "messages", weighted=True)
    # From the last, which is the assistant's.
    if not any(_is_learnt(message) for message in reversed(messages)):  # type: ignore[arg-type]
        _flaw("messages", "nothing is learnt", "give one assistant message the weight 1")


def _is_learnt(message: JsonValue) -> bool:
    return isinstance(message, dict) and (
        message.get("role") == "assistant" and message.get("weight") != 0
    )


def _require_completion(row: _Object) -> None:
    _members(row, "", required={"prompt": _any, "completion": _any})
    _turns(row, "prompt", ("completion",))


def _require_trl_preference(row: _Object) -> None:
    _members(row, "", required={"prompt": _any, "chosen": _any, "rejected": _any})
    _turns(row, "prompt", ("chosen", "rejected"))


def _require_openai_preference(row: _Object) -> None:
    outputs = {"preferred_output": _output, "non_preferred_output": _output}
    _members(row, "", required={"input": _input, **outputs})


def _input(value: JsonValue, path: str) -> None:
    _members(_object(value, path), path, required={"messages": _prompt}, optional=_TOOLS)


def _output(value: JsonValue, path: str) -> None:
    if not isinstance(value, list) or len(value) != 1:
        _flaw(path, "not a list of one message", "give exactly one assistant message")
    _messages(value, path)


def _turns(row: _Object, prompt: str, answers: tuple[str, ...]) -> None:
    """Require prompt and answers to be all texts, or all lists of messages (1.3, 1.5)."""
    if isinstance(row[prompt], str):
        for name in answers:
            _text(row[name], name)
            if not row[name]:
                _flaw(name, "the text is empty", "write what the model has to answer")
        return
    _prompt(row[prompt], prompt)
    for name in answers:
        _messages(row[name], name, roles=("assistant", "tool"))


# --- messages and tools ---------------------------------------------------------------------------


def _prompt(value: JsonValue, path: str) -> None:
    _messages(value, path, answered=False)


def _messages(
    value: JsonValue,
    path: str,
    *,
    roles: tuple[str, ...] = ("system", "developer", "user", "assistant", "tool"),
    answered: bool = True,
    weighted: bool = False,
) -> None:
    if not isinstance(value, list) or not value or len(value) > _MAX_MESSAGES:
        _flaw(path, f"not a list of 1 to {_MAX_MESSAGES} messages", "write a list of messages")
    for index, message in enumerate(value):
        role = _message(message, f"{path}[{index}]", roles, weighted=weighted)
    if answered and role != "assistant":
        last = f"{path}[{len(value) - 1}].role"
        _flaw(last, "the last message is not the assistant's", "end with what has to be learnt")


def _message(value: JsonValue, path: str, roles: tuple[str, ...], *, weighted: bool) -> str:
    message = _object(value, path)
    role = message.get("role")
    if not isinstance(role, str) or role not in roles:
        _flaw(f"{path}.role", f"not one of {', '.join(roles)}", "name who says this")
    if role == "assistant":
        optional = _WEIGHTED if weighted else _ASSISTANT
        if "tool_calls" in message:
            required, optional = _ROLE, {**optional, "content": _content_or_null}
        else:
            required = _ROLE_AND_CONTENT
    else:
        required = _TOOL_ANSWER if role == "tool" else _ROLE_AND_CONTENT
        optional = _NAME
    _members(message, path, required=required, optional=optional)
    return role


def _content(value: JsonValue, path: str) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        _flaw(path, "neither a text nor a list of text parts", "write a text")
    for index, part in enumerate(value):
        place = f"{path}[{index}]"
        _members(_object(part, place), place, required={"type": _only("text"), "text": _text})


def _content_or_null(value: JsonValue, path: str) -> None:
    if value is not None:
        _content(value, path)


def _tool_calls(value: JsonValue, path: str) -> None:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_TOOLS:
        _flaw(
            path, f"not a list of 1 to {_MAX_TOOLS} calls", "leave it out where nothing is called"
        )
    for index, call in enumerate(value):
        place = f"{path}[{index}]"
        _members(_object(call, place), place, required=_CALL)


def _called(value: JsonValue, path: str) -> None:
    _members(_object(value, path), path, required={"name": _text, "arguments": _text})


def _tools(value: JsonValue, path: str) -> None:
    if not isinstance(value, list) or len(value) > _MAX_TOOLS:
        _flaw(path, f"not a list of at most {_MAX_TOOLS} tools", "leave it out where there is none")
    for index, tool in enumerate(value):
        place = f"{path}[{index}]"
        _members(
            _object(tool, place), place, required={"type": _only("function"), "function": _tool}
        )


def _tool(value: JsonValue, path: str) -> None:
    optional: dict[str, _Check] = {"description": _text, "parameters": _any_object}
    _members(
        _object(value, path), path, required={"name": _text}, optional={**optional, "strict": _flag}
    )


# --- values ---------------------------------------------------------------------------------------


def _members(
    value: _Object,
    path: str,
    *,
    required: Mapping[str, _Check],
    optional: Mapping[str, _Check] | None = None,
) -> None:
    """Require exactly these members, each as its check has it."""
    for name, check in required.items():
        if name not in value:
            # A misspelt name is the likeliest reason for one that is missing.
            known = {**required, **(optional or {})}
            extra = {each: value[each] for each in value if each not in known}
            _flaw(_inside(path, name), f"missing{_guess(extra, known)}", f"add `{name}`")
        check(value[name], _inside(path, name))
    if len(value) == len(required):
        return
    known = {**required, **(optional or {})}
    unknown = {name: value[name] for name in value if name not in known}
    if unknown:
        names = ", ".join(f"`{name}`" for name in known)
        what = f"{len(unknown)} unknown member(s){_guess(unknown, known)}"
        _flaw(path, what, f"remove what is none of {names}")
    for name, check in (optional or {}).items():
        if name in value:
            check(value[name], _inside(path, name))


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _guess(given: Mapping[str, JsonValue], known: Collection[str]) -> str:
    """Return which of our names one of the `given` may mean: never the name itself (1.7)."""
    # A few of them: a row of many thousand names is no misspelling, and comparing is slow.
    for name in islice(given, _MAX_GUESSES):
        if name not in known and len(name) <= _MAX_NAME:
            close = get_close_matches(name.lower(), list(known), n=1)
            if close:
                return f" (one looks like `{close[0]}`)"
    return ""


def _object(value: JsonValue, path: str) -> _Object:
    if not isinstance(value, dict):
        _flaw(path, "no JSON object", "write an object")
    return value


def _any(_value: JsonValue, _path: str) -> None:
    """Judged together with another member."""


def _any_object(value: JsonValue, path: str) -> None:
    _object(value, path)


def _text(value: JsonValue, path: str) -> None:
    if not isinstance(value, str):
        _flaw(path, "no text", "write a string")


def _flag(value: JsonValue, path: str) -> None:
    if not isinstance(value, bool):
        _flaw(path, "neither true nor false", "write true or false")


def _weight(value: JsonValue, path: str) -> None:
    if isinstance(value, bool) or value not in (0, 1):
        _flaw(path, "neither 0 nor 1", "write 1 for what is learnt, 0 for what is not")


def _text_or_null(value: JsonValue, path: str) -> None:
    if value is not None:
        _text(value, path)


def _only(word: str) -> _Check:
    def check(value: JsonValue, path: str) -> None:
        if value != word:
            _flaw(path, f"not `{word}`", f"rows hold {word}s alone")

    return check


_MESSAGES: Final[dict[str, _Check]] = {"messages": _any}
_TOOLS: Final[dict[str, _Check]] = {"tools": _tools, "parallel_tool_calls": _flag}
_NAME: Final[dict[str, _Check]] = {"name": _text}
_ROLE: Final[dict[str, _Check]] = {"role": _any}
_ROLE_AND_CONTENT: Final[dict[str, _Check]] = {"role": _any, "content": _content}
_TOOL_ANSWER: Final[dict[str, _Check]] = {**_ROLE_AND_CONTENT, "tool_call_id": _text}
_ASSISTANT: Final[dict[str, _Check]] = {
    "name": _text,
    "refusal": _text_or_null,
    "tool_calls": _tool_calls,
}
_WEIGHTED: Final[dict[str, _Check]] = {**_ASSISTANT, "weight": _weight}
_CALL: Final[dict[str, _Check]] = {"id": _text, "type": _only("function"), "function": _called}
_ALL_NAMES: Final = (
    *("messages", "prompt", "completion", "chosen", "rejected"),
    *("input", "preferred_output", "non_preferred_output"),
)
