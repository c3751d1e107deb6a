"""The transparency log: entries, tiles, proofs, witnesses, monitoring. docs/protocols/log.md."""
