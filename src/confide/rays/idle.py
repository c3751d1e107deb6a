"""In place of an agent of Ray's: does nothing, listens nowhere, ends with its raylet. Run by path.

docs/protocols/training-ranks.md 6.4.
"""

import sys

if __name__ == "__main__":
    # The other end is the raylet's.
    sys.stdin.buffer.read()
