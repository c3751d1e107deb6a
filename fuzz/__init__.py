"""Fuzzing with one invariant: a result or one of our errors, in bounded time and memory.

`python -m fuzz` from the root of the repository. Every input follows from `--seed`, the name of
the target and a number, so that a finding can be had again; it is also printed as base64.
"""
