"""Generate labelled support notes from the templates beside this file.

Everything is synthetic and follows from a seed. The grammar is small: `(a|b|)` chooses,
`{slot}` inserts a filler, `#` is a digit, a backslash takes the next character literally.
The training split and the held-out split share no template and no filler of a slot.

    python notes.py --split heldout --seed 7 --rows 20     one JSON object a line
"""
# ruff: noqa: INP001 - a script beside its data, not a package

from __future__ import annotations

import argparse
import functools
import json
import random
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

LABELS = ("billing", "bug", "feature", "account", "shipping", "praise")
URGENCIES = ("urgent", "normal")
# Losing one of these would change what a note says.
_NEGATIONS = (
    "not",
    "no",
    "can't",
    "cannot",
    "cant",
    "don't",
    "doesn't",
    "nothing",
    "never",
    "wait",
)
_HERE = Path(__file__).resolve().parent

# A template as a tree: text, a slot, a sequence, or a choice.
Node: TypeAlias = "tuple[str, Any]"


@dataclass(frozen=True, slots=True)
class Row:
    """
    One conversation with the answer expected; `skill` is label, urgency or help.

    `label` and `urgency` are what is true of the note, whichever was asked; empty for help.
    """

    messages: tuple[tuple[str, str], ...]
    answer: str
    skill: str
    note: str
    label: str = ""
    urgency: str = ""


@functools.cache
def _parse(template: str) -> Node:
    node, end = _alternatives(template, 0)
    if end != len(template):
        raise ValueError(f"unbalanced template: {template}")
    return node


def _alternatives(text: str, at: int) -> tuple[Node, int]:
    choices: list[Node] = []
    parts: list[Node] = []
    literal = ""
    while at < len(text) and text[at] != ")":
        char = text[at]
        at += 1
        if char == "\\":
            literal += text[at]
            at += 1
        elif char in "({|":
            parts.append(("text", literal))
            literal = ""
            if char == "(":
                node, at = _alternatives(text, at)
                if at >= len(text):
                    raise ValueError(f"unbalanced template: {text}")
                parts.append(node)
                at += 1
            elif char == "{":
                end = text.index("}", at)
                parts.append(("slot", text[at:end]))
                at = end + 1
            else:
                choices.append(("sequence", parts))
                parts = []
        else:
            literal += char
    parts.append(("text", literal))
    choices.append(("sequence", parts))
    return (choices[0] if len(choices) == 1 else ("choice", choices)), at


class Generator:
    """Notes of one split. Two generators with the same split and seed give the same rows."""

    def __init__(self, split: str, seed: int) -> None:
        self._data = tomllib.loads((_HERE / f"{split}.toml").read_text(encoding="utf-8"))
        self._noise = split == "train"
        self._random = random.Random(f"{split}/{seed}")  # noqa: S311 - data, not keys
        self._heard = ["the"] * 200

    def row(self) -> Row:
        """Return the next conversation."""
        draw = self._random.random()
        if draw < 0.03 and self._noise:
            question = self._from(self._data["help"]["questions"])
            return Row((("user", question),), self._data["help"]["answer"], "help", question)
        label = self._random.choice(LABELS)
        urgency = self._random.choice(URGENCIES)
        skill = "urgency" if draw < 0.4 else "label"
        return self._ask(skill, self.note(label, urgency), label, urgency)

    def note(self, label: str, urgency: str) -> str:
        """Return one note about `label`."""
        chance = self._random.random
        neutral = self._data["neutral"]
        core = self._from(self._data["labels"][label]["templates"])
        sentences = [core]
        if chance() < 0.25:
            sentences.append(self._from(self._data["labels"][label]["templates"]))
        # Mostly short; now and then somebody tells a story.
        asides = self._random.choice((1, 1, 1, 2, 2, 6)) if chance() < 0.4 else 0
        for _ in range(asides):
            at = self._random.randrange(len(sentences) + 1)
            sentences.insert(at, self._from(neutral["context"]))
        if label in ("bug", "feature", "shipping") and chance() < 0.06:
            sentences.append(self._from(neutral["endings_positive"]))
        if urgency == "urgent" or (urgency == "normal" and chance() < 0.5):
            hint = self._from(self._data["urgency"][urgency])
            sentences.insert(self._random.choice((0, len(sentences), len(sentences))), hint)
        if chance() < 0.3:
            sentences.insert(0, self._from(neutral["greetings"]))
        if chance() < 0.25:
            sentences.append(self._from(neutral["closers"]))
        return self._roughen(" ".join(" ".join(sentence.split()) for sentence in sentences))

    def _ask(self, skill: str, note: str, label: str, urgency: str) -> Row:
        data = self._data["instructions"]
        draw = self._random.random()
        messages: list[tuple[str, str]] = []
        if draw < 0.12:
            messages.append(("system", self._from(data[f"{skill}_system"], note=note)))
            text = note if draw < 0.09 else f"Note: {note}"
        elif draw < 0.18 and skill == "label":
            text = note
        else:
            if draw < 0.26:
                messages.append(("system", self._from(data["plain_system"])))
            text = self._from(data[skill], note=note)
        messages.append(("user", text))
        if self._noise and self._random.random() < 0.05:
            # An earlier turn about something else: the last note counts.
            other = self._random.choice(LABELS)
            asked = self._from(data["label"], note=self.note(other, "normal"))
            messages[-1:-1] = [("user", asked), ("assistant", other)]
        answer = label if skill == "label" else urgency
        return Row(tuple(messages), answer, skill, note, label, urgency)

    def _from(self, templates: list[str], **given: str) -> str:
        return self._expand(_parse(self._random.choice(templates)), given)

    def _expand(self, node: Node, given: dict[str, str]) -> str:
        kind, value = node
        if kind == "text":
            return "".join(
                str(self._random.randrange(1, 10)) if char == "#" else char for char in value
            )
        if kind == "choice":
            return self._expand(self._random.choice(value), given)
        if kind == "sequence":
            return "".join(self._expand(part, given) for part in value)
        if value in given:
            return given[value]
        if value == "labels":
            return self._from(self._data["instructions"]["labels"])
        return self._from(self._data["slots"][value])

    def _roughen(self, note: str) -> str:
        """Case, typing errors, dropped words and stray numbers, as people write."""
        chance = self._random.random
        style = chance()
        if style < 0.15:
            note = note.lower()
        elif style < 0.19:
            note = note.upper()
        if chance() < 0.12:
            note = note.translate(str.maketrans("", "", ".,!'"))
        if chance() < 0.35:
            words = note.split(" ")
            for _ in range(1 + len(words) // 12):
                at = self._random.randrange(len(words))
                words[at] = self._typo(words[at])
            note = " ".join(words)
        if self._noise and chance() < 0.5:
            note = self._drop_words(note)
        return note

    def _drop_words(self, note: str) -> str:
        """Lose some words and hear some of other notes: most of a note is beside the point."""
        words = note.split(" ")
        kept = []
        for word in words:
            draw = self._random.random()
            if draw > 0.1 or word.lower().strip(".,!") in _NEGATIONS:
                kept.append(word)
            elif draw < 0.05:
                kept.append(self._random.choice(self._heard))
        self._heard[self._random.randrange(len(self._heard))] = self._random.choice(words)
        return " ".join(kept) or note

    def _typo(self, word: str) -> str:
        if len(word) < 4:
            return word
        at = self._random.randrange(1, len(word) - 1)
        kind = self._random.randrange(4)
        if kind == 0:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        if kind == 1:
            return word[:at] + word[at + 1 :]
        if kind == 2:
            return word[:at] + word[at] + word[at:]
        return word[:at] + self._random.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :]


def main() -> None:
    """Print rows of a split as JSON lines."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--split", choices=("train", "heldout"), default="heldout")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=10)
    given = parser.parse_args()
    generator = Generator(given.split, given.seed)
    for _ in range(given.rows):
        row = generator.row()
        messages = [{"role": role, "content": content} for role, content in row.messages]
        line = {"messages": messages, "answer": row.answer, "skill": row.skill}
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
