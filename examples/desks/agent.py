"""Send every note in /input/*.csv to a desk. Plain openai SDK; the model knows the desks."""

import collections
import csv
import os
import pathlib

import openai

PROMPT = "Which desk takes this note?\n\nNote: {note}"
INPUT = pathlib.Path("/input")
OUTPUT = pathlib.Path("/output")


def desk(client: openai.OpenAI, model: str, note: str) -> str:
    """Ask the model for one word; anything else becomes `unclear`."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": PROMPT.format(note=note)}],
        temperature=0,
        max_tokens=8,
    )
    word = (answer.choices[0].message.content or "").strip().lower().rstrip(".")
    return word if word.isalpha() else "unclear"


def notes() -> list[tuple[str, str]]:
    """Read number and text of every row that has a note, from all CSV files in order."""
    rows = []
    for path in sorted(INPUT.rglob("*.csv")):
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), 1):
                note = (row.get("note") or row.get("text") or "").strip()
                if note:
                    rows.append((row.get("id") or str(number), note))
    return rows


def main() -> None:
    """Ask about every note and write the table."""
    client = openai.OpenAI()
    model = os.getenv("CONFIDE_MODEL", "support-notes")
    counts: collections.Counter[str] = collections.Counter()
    with (OUTPUT / "desks.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("id", "desk", "note"))
        for ident, note in notes():
            found = desk(client, model, note)
            counts[found] += 1
            table.writerow((ident, found, note))
    print(f"{sum(counts.values())} notes for {len(counts)} desks")


if __name__ == "__main__":
    main()
