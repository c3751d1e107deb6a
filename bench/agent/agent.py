"""Make as many model calls as /input/calls says, none where there is no such file."""

import pathlib
from os import environ  # noqa: TID251 - an agent is told everything by its environment

given = pathlib.Path("/input/calls")
calls = int(given.read_text()) if given.exists() else 0
if calls:
    import json
    import urllib.request

    url = environ["OPENAI_BASE_URL"].rstrip("/") + "/chat/completions"
    headers = {
        "content-type": "application/json",
        "authorization": "Bearer " + environ["OPENAI_API_KEY"],
    }
    body = {"model": "bench", "messages": [{"role": "user", "content": "label this note"}]}
    for _ in range(calls):
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310
        urllib.request.urlopen(request).read()  # noqa: S310
print("done")
