"""Sort support notes into queues with the OpenAI Agents SDK (Responses API), nothing of ours.

Two agents share the work: one names the topic, one the urgency. Reads /input/*.csv, writes
/output/queues.json and /output/triage.csv.
"""

import asyncio
import collections
import csv
import json
import os
import pathlib

from agents import Agent, ModelSettings, Runner

MODEL = os.getenv("CONFIDE_MODEL", "support-notes")
TOPICS = ("billing", "bug", "feature", "account", "shipping", "praise")
URGENCIES = ("urgent", "normal")
TOPIC_PROMPT = f"Label this support note as one of: {', '.join(TOPICS)}.\n\nNote: "
URGENCY_PROMPT = "Is this support note urgent or normal? Answer with one word.\n\nNote: "
SETTINGS = ModelSettings(temperature=0, max_tokens=16)

topic_agent = Agent(name="topic", model=MODEL, model_settings=SETTINGS)
urgency_agent = Agent(name="urgency", model=MODEL, model_settings=SETTINGS)


async def ask(agent: Agent, prompt: str, allowed: tuple[str, ...]) -> str:
    """Run one agent on one note; anything else than a label becomes `unclear`."""
    result = await Runner.run(agent, prompt, max_turns=1)
    word = str(result.final_output).strip().lower().rstrip(".")
    return word if word in allowed else "unclear"


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


async def main() -> None:
    """Ask both agents about every note and write the queues."""
    queues: dict[str, list[str]] = collections.defaultdict(list)
    output = pathlib.Path("/output")
    with (output / "triage.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("topic", "urgency", "note"))
        for note in notes():
            topic, urgency = await asyncio.gather(
                ask(topic_agent, TOPIC_PROMPT + note, TOPICS),
                ask(urgency_agent, URGENCY_PROMPT + note, URGENCIES),
            )
            queues[f"{topic}/{urgency}"].append(note)
            table.writerow((topic, urgency, note))
    text = json.dumps(dict(sorted(queues.items())), indent=2, ensure_ascii=False)
    (output / "queues.json").write_text(text + "\n", encoding="utf-8")
    print(f"{sum(map(len, queues.values()))} notes in {len(queues)} queues")


if __name__ == "__main__":
    asyncio.run(main())
