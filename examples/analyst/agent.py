"""Label every support note in /input/*.csv and count the labels. Plain openai SDK.

The key of the pseudonyms is a secret of the owner's; what was counted before is in /state. Both are
ordinary files here.
"""

import collections
import csv
import hashlib
import hmac
import json
import os
import pathlib

import openai

LABELS = ("billing", "bug", "feature", "account", "shipping", "praise")
PROMPT = "Label this support note as one of: {labels}.\n\nNote: {note}"
INPUT = pathlib.Path("/input")
OUTPUT = pathlib.Path("/output")
KEY = pathlib.Path("/run/secrets/pseudonym-key")
MEMORY = pathlib.Path("/state/counts.json")


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


def pseudonym(key: bytes, customer: str) -> str:
    """The same customer gets the same name; without the key nobody gets back from it."""
    if not customer:
        return ""
    return "c-" + hmac.new(key, customer.encode(), hashlib.sha256).hexdigest()[:10]


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
                    customer = (row.get("customer") or "").strip()
                    found = {"file": path.name, "id": ident, "customer": customer, "note": note}
                    rows.append(found)
    return rows


def main() -> None:
    """Label, write the table, write the summary."""
    client = openai.OpenAI()
    model = os.getenv("CONFIDE_MODEL", "support-notes")
    counts: collections.Counter[str] = collections.Counter()
    rows, key = notes(), KEY.read_bytes()
    earlier = json.loads(MEMORY.read_text()) if MEMORY.exists() else {"runs": 0, "labels": {}}
    with (OUTPUT / "labelled.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("file", "id", "customer", "label", "note"))
        for row in rows:
            found = label(client, model, row["note"])
            counts[found] += 1
            name = pseudonym(key, row["customer"])
            table.writerow((row["file"], row["id"], name, found, row["note"]))
    total = collections.Counter(earlier["labels"]) + counts
    runs = earlier["runs"] + 1
    lines = ["# Support notes", "", f"{len(rows)} notes, run {runs}", ""]
    lines += ["| label | notes | in all runs |", "|---|---|---|"]
    lines += [f"| {name} | {counts[name]} | {count} |" for name, count in sorted(total.items())]
    (OUTPUT / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    MEMORY.write_text(json.dumps({"runs": runs, "labels": total}), encoding="utf-8")
    print(f"{len(rows)} notes labelled")


if __name__ == "__main__":
    main()
