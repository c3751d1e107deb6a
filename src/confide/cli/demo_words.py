"""What `confide demo train` says before and after; every figure is given to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.cli.screen import hanging, heading

if TYPE_CHECKING:
    from rich.console import RenderableType

    from confide.training.job import Evaluation

__all__ = ["learnt", "same_digest", "story", "what_was_shown"]

_PROVEN = (
    "which rows: one commitment, from the owner's file to the record, and a proof of one of them",
    "which base, and which measured software, trained on them, step by step, to these weights",
    "that the weights that answered the agent are these, and were measured before they answered",
    "that the agent ran sealed: its notes went to nobody but the two nodes that were proven first",
    "that a log holds record and receipt, and cannot drop them unseen; here a log of this machine",
)
_UNPROVEN = (
    "genuine hardware: it is SIMULATED here. The checks are those of genuine hardware",
    "that each step was computed rightly: nobody replayed one here (confide train replay)",
    "that the model is good, beyond the rows held out, or that it memorised nothing of a row",
    "that whoever runs the machine sees nothing: genuine hardware encrypts memory, this does not",
)


def story() -> str:
    """Return what this is about."""
    return (
        "An invented firm trains the bundled model on its own support notes, so that it knows "
        "the firm's desks.\nThe node that trains is proven before a row is sent; what it made "
        "only the owner opens."
    )


def learnt(base: Evaluation, tuned: Evaluation, *, right: int, asked: int) -> list[tuple[str, str]]:
    """Return what the owner's log and the agent's output say, as `label, sentence`."""
    return [
        (
            "held out",
            f"{tuned.rows} rows that nothing was learnt from, {tuned.count} tokens of answers",
        ),
        ("base", f"{base.accuracy:.1%} of them right, loss {base.loss:.2f}"),
        ("tuned", f"{tuned.accuracy:.1%} of them right, loss {tuned.loss:.2f}"),
        ("agent", f"{right} of {asked} new notes, written by hand, to the right desk"),
    ]


def same_digest(trained: str, served: str) -> list[tuple[str, str]]:
    """Return both digests, as `label, sentence`; that they are equal is verified in stage 4."""
    word = "the same" if trained == served else "ANOTHER ONE"
    return [
        ("trained", f"{trained}  says the training record"),
        ("answered", f"{served}  says the receipt of the run: {word}"),
    ]


def what_was_shown() -> list[RenderableType]:
    """Return what the chain proves, and what it does not."""
    return [
        heading("What was proven", "on SIMULATED hardware"),
        *(hanging("  ✓ ", text, mark_style="green") for text in _PROVEN),
        heading("What was not"),
        *(hanging("  - ", text, mark_style="yellow") for text in _UNPROVEN),
    ]
