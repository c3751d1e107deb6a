"""The public face of Confide."""
