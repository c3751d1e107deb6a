"""Ray as what carries the links between seats: docs/protocols/training-ranks.md §6.

`links` is the node's side and imports no Ray; the rest runs in processes of its own.
"""
