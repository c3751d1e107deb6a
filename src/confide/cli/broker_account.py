"""What a run had of its broker, for a person and for a program: counted from its transcript."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.cli.screen import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confide.receipts.transcript import Event
    from confide.wire.json import JsonValue

__all__ = ["BrokerAccount", "broker_account"]

_VERSION_CHARS = 12
# From: docs/protocols/state.md 2.7.
_KEPT = {
    "agent-failed": "the agent did not end with status 0",
    "too-large": "it was above limits.state_bytes",
    "unavailable": "the broker did not confirm the save; the next run shows what it has",
}


@dataclass(frozen=True, slots=True)
class BrokerAccount:
    """
    Secrets by name and version (hex), the state by its counters, and how many places were scrubbed.

    `opened` is None where the run had no state, `saved` where it was not saved: `kept` says why.
    """

    secrets: tuple[tuple[str, str], ...]
    opened: int | None
    saved: int | None
    kept: str | None
    left_out: int
    scrubbed: int

    def document(self) -> dict[str, JsonValue]:
        """Return the members of the JSON object."""
        state: JsonValue = None
        if self.opened is not None:
            state = {
                "opened": self.opened,
                "saved": self.saved,
                "kept": self.kept,
                "left_out": self.left_out,
            }
        return {
            "secrets": [{"name": name, "version": version} for name, version in self.secrets],
            "state": state,
            "scrubbed": self.scrubbed,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return `label, sentence` rows; none where the run had nothing of a broker."""
        rows: list[tuple[str, str]] = []
        if self.secrets:
            found = (
                f"{name} (version {version[:_VERSION_CHARS]}…)" for name, version in self.secrets
            )
            rows.append(("secrets", ", ".join(found)))
        if self.opened is not None:
            rows.append(("state", self._state()))
        if self.scrubbed:
            rows.append(("scrubbed", f"secrets taken out in {self.scrubbed} places"))
        return rows

    def _state(self) -> str:
        found = f"number {self.opened} opened" if self.opened else "a new one begun"
        if self.saved is not None:
            found += f", saved as number {self.saved}"
        elif self.kept is not None:
            found += f", not saved: {_KEPT.get(self.kept, self.kept)}"
        if self.left_out:
            found += f"; {self.left_out} entries were no plain files and are not in it"
        return found


def broker_account(kinds: Mapping[str, Sequence[Event]]) -> BrokerAccount:
    """Count what `kinds`, the events of a transcript by their kind, say of the broker."""
    kept = [printable(str(event["reason"])) for event in kinds.get("state-kept", ())]
    return BrokerAccount(
        secrets=tuple(
            (printable(str(event["name"])), event.digest("version").hex())
            for event in kinds.get("secret-released", ())
        ),
        opened=_last(kinds.get("state-opened", ()), "counter"),
        saved=_last(kinds.get("state-saved", ()), "counter"),
        kept=kept[-1] if kept else None,
        left_out=len(kinds.get("state-left-out", ())),
        scrubbed=sum(_last([event], "count") or 0 for event in kinds.get("scrubbed", ())),
    )


def _last(events: Sequence[Event], name: str) -> int | None:
    value = events[-1][name] if events else None
    return value if isinstance(value, int) else None
