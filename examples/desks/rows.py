"""Make rows to train on: notes to an invented firm, and the desk that took each of them.

    python examples/desks/rows.py --rows 600 -o rows.jsonl

Nobody in them exists. The notes come from the templates that the bundled model was tested with and
never trained on (models/support_notes/heldout.toml); names of desks are in no template, so that a
model can know them from these rows alone. The same seed gives the same rows.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "models" / "support_notes"))
from notes import Generator

# What a note is about, and whether it is urgent, decides who takes it.
DESKS = {
    "billing": {"normal": "teal", "urgent": "amber"},
    "bug": {"normal": "cedar", "urgent": "flint"},
    "feature": {"normal": "maple", "urgent": "maple"},
    "account": {"normal": "heron", "urgent": "wren"},
    "shipping": {"normal": "delta", "urgent": "delta"},
    "praise": {"normal": "olive", "urgent": "olive"},
}
QUESTION = "Which desk takes this note?\n\nNote: {note}"
LONGEST = 300


def make_rows(count: int, seed: int) -> list[str]:
    """Return `count` different rows, one JSON object each."""
    generator = Generator("heldout", seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        made = generator.row()
        if made.skill == "help" or len(made.note) > LONGEST:
            continue
        messages = [
            {"role": "user", "content": QUESTION.format(note=made.note)},
            {"role": "assistant", "content": DESKS[made.label][made.urgency]},
        ]
        rows[made.note] = json.dumps({"messages": messages}, ensure_ascii=False)
    return list(rows.values())


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    text = "".join(f"{row}\n" for row in make_rows(given.rows, given.seed))
    given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
