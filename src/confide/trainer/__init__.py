"""The training loop: the one room that knows torch. docs/protocols/training.md §9."""
