"""Label every support note in /input/*.csv and count the labels. Plain openai SDK."""

import collections
import csv
import os
import pathlib

import openai

LABELS = ("billing", "bug", "feature", "account", "shipping", "praise")
PROMPT = "Label this support note as one of: {labels}.\n\nNote: {note}"
INPUT = pathlib.Path("/input")
OUTPUT = pathlib.Path("/output")


def label(client: openai.OpenAI, model: str, note: str) -> str:
    """Ask the model for one label; anything else than a label becomes `unclear`."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": PROMPT.format(labels=", ".join(LABELS), note=note)}],
        temperature=0,
        max_tokens=8,
    )
    word = (answer.choices[0].message.content or "").strip().lower().rstrip(".")
    return word if word in LABELS else "unclear"


def notes() -> list[dict[str, str]]:
    """Read every row that has a note, from all CSV files in order of their names."""
    rows = []
    for path in sorted(INPUT.rglob("*.csv")):
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for number, row in enumerate(reader, 1):
                note = (row.get("note") or row.get("text") or "").strip()
                if note:
                    ident = row.get("id") or str(number)
                    rows.append({"file": path.name, "id": ident, "note": note})
    return rows


def main() -> None:
    """Label, write the table, write the summary."""
    client = openai.OpenAI()
    model = os.getenv("CONFIDE_MODEL", "support-notes")
    counts: collections.Counter[str] = collections.Counter()
    rows = notes()
    with (OUTPUT / "labelled.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("file", "id", "label", "note"))
        for row in rows:
            found = label(client, model, row["note"])
            counts[found] += 1
            table.writerow((row["file"], row["id"], found, row["note"]))
    lines = ["# Support notes", "", f"{len(rows)} notes", "", "| label | notes |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in sorted(counts.items())]
    (OUTPUT / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(rows)} notes labelled")


if __name__ == "__main__":
    main()
