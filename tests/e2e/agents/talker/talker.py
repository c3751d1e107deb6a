"""A chat agent that answers each line with its secret, and with how often it was ever asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

_COUNT = Path("/state/count")
secret = Path("/run/secrets/db-password").read_text()
count = int(_COUNT.read_text()) if _COUNT.exists() else 0

for line in sys.stdin:
    count += 1
    sys.stdout.write(json.dumps({"said": line.strip(), "secret": secret, "asked": count}) + "\n")
    sys.stdout.flush()
    _COUNT.write_text(str(count))
    if line.strip() == "fail":
        sys.exit(1)
