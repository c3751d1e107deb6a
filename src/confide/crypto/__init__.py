"""Thin typed wrappers. The only importer of `cryptography` and `lxml`."""
