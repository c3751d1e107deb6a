"""The commonest rows, judged and written at once: messages of role and text, and plain texts.

docs/protocols/dataset.md 1.3 to 1.5, 2.1. Says nothing that `require_shape` and RFC 8785 do not say
of the same row, and says it faster; of every other row, and of one that is wrong, it says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.training.row_shapes import Kind
    from confide.wire.json import JsonValue

__all__ = ["write_simple_row"]

# Other messages have members more: those of tools, and answers that call them.
_ROLES: Final = frozenset({"system", "developer", "user", "assistant"})
_MAX_MESSAGES: Final = 4096
# Names in the order of RFC 8785.
_TEXTS: Final[tuple[tuple[Kind, tuple[str, ...]], ...]] = (
    ("completion", ("completion", "prompt")),
    ("preference", ("chosen", "prompt", "rejected")),
)


def write_simple_row(row: JsonValue, quote: Callable[[str], str]) -> tuple[Kind, str] | None:
    """
    Return the kind of `row` and its RFC 8785 form; None where it is not as simple as that.

    `quote` writes one text as RFC 8785 has it.
    """
    if not isinstance(row, dict):
        return None
    if len(row) == 1:
        written = _write_chat(row.get("messages"), quote)
        return None if written is None else ("chat", f'{{"messages":[{written}]}}')
    return next(
        (
            (kind, f"{{{written}}}")
            for kind, names in _TEXTS
            if len(row) == len(names) and (written := _write_texts(row, names, quote)) is not None
        ),
        None,
    )


def _write_texts(
    row: dict[str, JsonValue], names: tuple[str, ...], quote: Callable[[str], str]
) -> str | None:
    written = []
    for name in names:
        text = row.get(name)
        # A prompt may be empty, what is learnt may not.
        if not isinstance(text, str) or not (text or name == "prompt"):
            return None
        written.append(f'"{name}":{quote(text)}')
    return ",".join(written)


def _write_chat(messages: JsonValue, quote: Callable[[str], str]) -> str | None:
    if not isinstance(messages, list) or len(messages) > _MAX_MESSAGES:
        return None
    written = []
    role: JsonValue = None
    for message in messages:
        if not isinstance(message, dict) or len(message) != 2:
            return None
        role, content = message.get("role"), message.get("content")
        if not (isinstance(role, str) and isinstance(content, str) and role in _ROLES):
            return None
        # In the order of their names.
        written.append(f'{{"content":{quote(content)},"role":"{role}"}}')
    # 1.5: the assistant speaks last, and without a weight it is learnt from.
    return ",".join(written) if role == "assistant" else None
