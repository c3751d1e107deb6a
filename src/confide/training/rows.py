"""Rows of a data set, read as its bytes come. docs/protocols/dataset.md §1.

The bytes are hostile, and they are private: an error says where and what, and repeats nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.errors import FormatError, Reason
from confide.training.lines import MAX_ROW_BYTES, LineSplitter
from confide.training.row_shapes import Flaw, require_shape
from confide.training.row_simple import write_simple_row
from confide.wire.json import JsonLimits, parse_json
from confide.wire.json_canonical import canonical_json, read_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from confide.training.lines import Line
    from confide.training.row_shapes import Kind
    from confide.wire.json import JsonValue
    from confide.wire.json_canonical import Quote

__all__ = ["MAX_ROWS", "Row", "RowError", "RowReader", "parse_row", "require_rows"]

# From: docs/protocols/dataset.md 1.1.
MAX_ROWS: Final = 16 * 1024 * 1024
_CLAUSE: Final = "docs/protocols/dataset.md#1"
_LIMITS: Final = JsonLimits(max_bytes=MAX_ROW_BYTES, max_depth=32)
# The canonical form may be longer: 1e20 has 21 digits there.
_CANONICAL: Final = JsonLimits(max_bytes=6 * MAX_ROW_BYTES, max_depth=32)
# What a file begins with that is none of ours, and what to do about it.
_FOREIGN: Final = (
    (b"\xef\xbb\xbf", "a byte order mark", "save the file as UTF-8 without one"),
    (b"\xff\xfe", "UTF-16", "save the file as UTF-8"),
    (b"\xfe\xff", "UTF-16", "save the file as UTF-8"),
    (b"\x1f\x8b", "gzip", "unpack the file first"),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "unpack the file first"),
    (b"PAR1", "Parquet", "export the rows as JSON lines"),
    (b"[", "a JSON list", "write one object on each line, without a list around them"),
)


class RowError(FormatError):
    """
    A line that is no row: its number, the place inside the row, what is wrong and what to do.

    `line` is 0 where the file as a whole is meant. Holds no text of the row.
    """

    def __init__(self, line: int, what: str, todo: str, *, path: str = "") -> None:
        self.line = line
        self.path = path
        self.todo = todo
        place = f"line {line}" if line else "the file"
        where = f"{place}, {path}" if path else place
        super().__init__(f"{where}: {what}; {todo}", reason=Reason.ROW_FORMAT, clause=_CLAUSE)

    def __str__(self) -> str:
        """Return what a person needs; reason and clause are the same for each row."""
        return self.what


@dataclass(frozen=True, slots=True)
class Row:
    """
    One row: `index` from 0, its kind, `record`, its RFC 8785 form, `size`, that of its line.

    Equal records are equal rows.
    """

    index: int
    kind: Kind
    record: bytes = field(repr=False)
    size: int

    @property
    def value(self) -> dict[str, JsonValue]:
        """What is learnt from: the record, read."""
        value = _read_record(self.record)
        if not isinstance(value, dict):  # pragma: no cover - the shape is that of an object
            raise TypeError("a row is an object")
        return value


def parse_row(line: Line) -> Row:
    """Read one line as a row (1.2 to 1.6). Raises `RowError`."""
    raw = line.raw
    if raw is None:
        todo = "shorten or split this row"
        raise RowError(line.number, f"longer than {MAX_ROW_BYTES} bytes", todo)
    if not raw or raw.isspace():
        raise RowError(line.number, "the line is empty", "remove it")
    try:
        plain = _read_plain(raw)
        kind, record = _write_simple(plain) or _read_any(raw, plain)
    except Flaw as flaw:
        raise RowError(line.number, flaw.what, flaw.todo, path=flaw.path) from None
    except FormatError as error:
        # Without the cause: it would carry the row into a traceback.
        raise _unread(line.number, raw, error) from None
    return Row(line.number - 1, kind, record, len(raw))


def _read_plain(raw: bytes) -> tuple[JsonValue, Quote] | None:
    return read_plain(raw, what="row", reason=Reason.ROW_FORMAT, limits=_LIMITS)


def _write_simple(plain: tuple[JsonValue, Quote] | None) -> tuple[Kind, bytes] | None:
    simple = None if plain is None else write_simple_row(*plain)
    if simple is None:
        return None
    try:
        return simple[0], simple[1].encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return None


def _read_any(raw: bytes, plain: tuple[JsonValue, Quote] | None) -> tuple[Kind, bytes]:
    # The value is that of the record, so that nothing is learnt from which the commitment does not
    # determine: a template shows the order of members, and 1.0 is not 1.
    value, record = canonical_json(raw, plain, what="row", reason=Reason.ROW_FORMAT, limits=_LIMITS)
    try:
        return require_shape(value), record
    except Flaw:
        # Which misspelt name is guessed at depends on their order: here too it is the record's.
        return require_shape(_read_record(record)), record


def _read_record(record: bytes) -> JsonValue:
    return parse_json(record, what="row", reason=Reason.ROW_FORMAT, limits=_CANONICAL)


def _unread(number: int, raw: bytes, error: FormatError) -> RowError:
    for start, what, todo in _FOREIGN:
        if number == 1 and raw.startswith(start):
            return RowError(number, f"the file begins with {what}", todo)
    if b"\0" in raw:
        return RowError(number, "a zero byte", "save the file as UTF-8, not UTF-16 or UTF-32")
    what = error.what.removeprefix("row: ")
    at = f" at {error.offset + 1}" if error.offset >= 0 else ""
    if "UTF-8" in what:
        return RowError(number, f"{what}{at}", "save the file as UTF-8")
    return RowError(number, f"{what}{at}", "write one JSON object on this line")


class RowReader:
    """
    The rows of one file, in order, and an error in the place of each line that is none.

    Of one kind: the first row says which (1.3). Memory does not grow with the file.
    """

    __slots__ = ("_lines", "kind", "lines")

    def __init__(self) -> None:
        self._lines = LineSplitter()
        self.lines = 0
        self.kind: Kind | None = None

    def feed(self, data: bytes) -> Iterator[Row | RowError]:
        """Take the next bytes; yield what the lines that they end hold."""
        for line in self._lines.feed(data):
            yield self._judge(line)

    def end(self) -> Iterator[Row | RowError]:
        """The file has ended: yield what is left; an error where there was no line."""
        for line in self._lines.end():
            yield self._judge(line)
        if not self.lines:
            yield RowError(0, "there is no row", "write one JSON object on each line")

    def read(self, pieces: Iterable[bytes]) -> Iterator[Row | RowError]:
        """Yield everything in the file whose bytes are `pieces`."""
        for piece in pieces:
            yield from self.feed(piece)
        yield from self.end()

    def _judge(self, line: Line) -> Row | RowError:
        self.lines = line.number
        if line.number > MAX_ROWS:
            return RowError(line.number, f"more than {MAX_ROWS} rows", "split the file")
        try:
            row = parse_row(line)
        except RowError as error:
            return error
        if self.kind is None:
            self.kind = row.kind
        if row.kind != self.kind:
            what = f"a {row.kind} row after {self.kind} rows"
            return RowError(line.number, what, "keep one kind in a file")
        return row


def require_rows(found: Iterable[Row | RowError]) -> Iterator[Row]:
    """Yield the rows; raise the first `RowError`."""
    for each in found:
        if isinstance(each, RowError):
            raise each
        yield each
