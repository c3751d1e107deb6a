"""Values of the command line that are fine as they are, without what typer loads to coerce them.

typer coerces every parameter with pydantic, and 80 ms of importing it is more than a signature, a
hundred times over. Absent values and plain text need no coercion; the rest goes typer's way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["spare_coercion"]


class _Plain:
    """In the place of one parameter's coercion: `own` returns typer's."""

    def __init__(self, own: Callable[[], Any], *, text: bool) -> None:
        self._own = own
        self._text = text

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return `value` as typer would."""
        if value is None:
            return () if getattr(param, "multiple", False) or param.nargs == -1 else None
        if self._text and isinstance(value, str) and value.isascii():
            return value
        return self._own().coerce(value, param=param, ctx=ctx)


def spare_coercion(params: list[Any]) -> list[Any]:
    """Let absent values and plain text pass; without effect on parameters of another typer."""
    for param in params:
        own = getattr(param, "get_runtime_param", None)
        kind = getattr(param, "type_descriptor", None)
        if own is None or kind is None or "get_runtime_param" in vars(param):
            continue
        plain = _Plain(own, text=kind.annotation is str and kind.parameter_info.parser is None)
        param.get_runtime_param = lambda plain=plain: plain
    return params
