"""Label what customers write and keep a file on each of them, under pseudonyms.

The key of the pseudonyms is a secret, what was learnt before a state. Both are ordinary files here:
/run/secrets/pseudonym-key and /state/customers.json.
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
MEMORY = pathlib.Path("/state/customers.json")


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
    return "c-" + hmac.new(key, customer.encode(), hashlib.sha256).hexdigest()[:10]


def notes() -> list[tuple[str, str]]:
    """Read customer and note of every row that has a note, from all CSV files in order."""
    rows = []
    for path in sorted(INPUT.rglob("*.csv")):
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                note = (row.get("note") or row.get("text") or "").strip()
                if note:
                    rows.append(((row.get("customer") or "unknown").strip(), note))
    return rows


def main() -> None:
    """Label, add to the files, write who needs a call."""
    client = openai.OpenAI()
    model = os.getenv("CONFIDE_MODEL", "support-notes")
    key = KEY.read_bytes()
    memory = json.loads(MEMORY.read_text()) if MEMORY.exists() else {"runs": 0, "customers": {}}
    memory["runs"] += 1
    seen: collections.Counter[str] = collections.Counter()
    for customer, note in notes():
        name = pseudonym(key, customer)
        counts = memory["customers"].setdefault(name, {})
        found = label(client, model, note)
        counts[found] = counts.get(found, 0) + 1
        seen[name] += 1
    MEMORY.write_text(json.dumps(memory, sort_keys=True), encoding="utf-8")
    lines = ["# Follow-up", "", f"{sum(seen.values())} notes in this run, run {memory['runs']}", ""]
    lines += ["| customer | now | in all runs | mostly about |", "|---|---|---|---|"]
    for name, counts in sorted(memory["customers"].items()):
        mostly = max(sorted(counts), key=lambda each: counts[each])
        lines.append(f"| {name} | {seen[name]} | {sum(counts.values())} | {mostly} |")
    (OUTPUT / "followup.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{sum(seen.values())} notes of {len(seen)} customers")


if __name__ == "__main__":
    main()
