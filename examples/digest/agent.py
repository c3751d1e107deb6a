"""Write a digest of support notes with a pydantic-ai agent, nothing of ours.

The agent has a typed output: a label out of a closed set, or it is asked again. Reads
/input/*.csv, writes /output/digest.md.
"""

import collections
import csv
import os
import pathlib

from pydantic_ai import Agent, ModelRetry, TextOutput, UnexpectedModelBehavior
from pydantic_ai.models.openai import OpenAIChatModel

LABELS = ("billing", "bug", "feature", "account", "shipping", "praise")
PROMPT = "Label this support note as one of: {labels}.\n\nNote: {note}"


def read_label(text: str) -> str:
    """Accept a label, ask again for anything else."""
    word = text.strip().lower().rstrip(".")
    if word not in LABELS:
        raise ModelRetry(f"Answer with one of: {', '.join(LABELS)}.")
    return word


agent = Agent(
    OpenAIChatModel(os.getenv("CONFIDE_MODEL", "support-notes")),
    output_type=TextOutput(read_label),
    model_settings={"temperature": 0, "max_tokens": 16},
)


def label(note: str) -> str:
    """Label one note; a model that cannot is reported as `unclear`."""
    try:
        return agent.run_sync(PROMPT.format(labels=", ".join(LABELS), note=note)).output
    except UnexpectedModelBehavior:
        return "unclear"


def notes() -> list[str]:
    """Read the notes of all CSV files in order of their names."""
    found = []
    for path in sorted(pathlib.Path("/input").rglob("*.csv")):
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                note = (row.get("note") or row.get("text") or "").strip()
                if note:
                    found.append(note)
    return found


def main() -> None:
    """Group the notes by label and write them down."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for note in notes():
        groups[label(note)].append(note)
    total = sum(map(len, groups.values()))
    lines = ["# Digest", "", f"{total} notes, {len(groups)} topics", ""]
    for name in sorted(groups, key=lambda name: (-len(groups[name]), name)):
        lines += [f"## {name} ({len(groups[name])})", ""]
        lines += [f"- {note}" for note in groups[name]]
        lines += [""]
    pathlib.Path("/output/digest.md").write_text("\n".join(lines), encoding="utf-8")
    print(f"{total} notes digested")


if __name__ == "__main__":
    main()
