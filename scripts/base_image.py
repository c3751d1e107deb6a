"""Make the base image of agents before anyone asks for it; `scripts/setup` runs this.

It takes what `confide build` would take later, into the same cache, and prints how it goes.
"""

from __future__ import annotations

import asyncio
import os
import sys

from confide.adapters.base_image import default_base
from confide.adapters.engine import probe_engine
from confide.adapters.paths import Paths
from confide.errors import ConfideError


async def _make() -> None:
    paths = Paths.from_environment(os.environ)  # noqa: TID251 - a command reads it once
    paths.make_private()
    await default_base(await probe_engine(), cache=paths.cache, progress=print)


def main() -> int:
    """Return 0 when the base image is there."""
    try:
        asyncio.run(_make())
    except ConfideError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
