"""The executable specification: numbered vectors, closed reasons, a command-line contract."""
