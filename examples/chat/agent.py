"""One JSON line in, one JSON line out. Plain openai SDK; what was said stays in this process."""

import json
import os
import sys

import openai

LABELS = "billing, bug, feature, account, shipping, praise"


def main() -> None:
    """Answer until the input ends."""
    client = openai.OpenAI()
    model = os.getenv("CONFIDE_MODEL", "support-notes")
    heard: list[str] = []
    for line in sys.stdin:
        message = json.loads(line).get("message", "")
        answer = client.chat.completions.create(
            model=model,
            messages=[
                {
                    "role": "user",
                    "content": f"Label this support note as one of: {LABELS}.\n\nNote: {message}",
                }
            ],
            temperature=0,
            max_tokens=8,
        )
        label = (answer.choices[0].message.content or "").strip()
        heard.append(label)
        print(json.dumps({"message": label, "turn": len(heard), "before": heard[:-1]}), flush=True)


if __name__ == "__main__":
    main()
