"""Embedded vendor roots, each with source, SHA-256 and date."""
