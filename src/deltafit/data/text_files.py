"""The decoded lines that every text format starts from, packed with gzip or not."""

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltafit.errors import DeltafitError

_GZIP = b"\x1f\x8b"
_HIGH = bytes(range(128, 256))
_NO_LETTERS = bytes(each for each in range(128) if not chr(each).isalpha())
# Beyond ASCII, for each letter in it: no language that Windows-1252 writes has nearly as many, and
# one with another alphabet (Windows-1251, GBK) has hardly any others.
_MOST = 0.5
_FEW = 16  # bytes, of which no share is told


class UndecodableError(Exception):
    """A byte that is no text, before the row and the column in which it stands are known.

    Attributes:
        line: the line in which it stands.
        before: that line up to the byte.
    """

    def __init__(self, problem: str, line: int, before: str) -> None:
        super().__init__(problem)
        self.line, self.before = line, before


@dataclass(frozen=True)
class TextFile:
    """A file of text whose encoding is known; as a string it is its path.

    Attributes:
        path: of the file, which may be packed with gzip whatever it is called.
        encoding: of its lines, "utf-8" or "cp1252".
        note: a sentence where it is not UTF-8.
    """

    path: Path
    encoding: str = "utf-8"
    note: str | None = None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def notes(self) -> tuple[str, ...]:
        """The note, if there is one."""
        return (self.note,) if self.note else ()

    def lines(self) -> Iterator[str]:
        """Yield the lines with their endings; a byte order mark is dropped.

        Raises:
            DeltafitError: the file cannot be unpacked.
            UndecodableError: a byte is not text of this encoding.
        """
        offset = count = 0
        for raw in _raw_lines(self.path):
            try:
                text, undecodable = raw.decode(self.encoding), None
            except UnicodeDecodeError as error:
                text, undecodable = raw[: error.start].decode(self.encoding), error
            text = text.removeprefix("\ufeff") if offset == 0 else text
            # A binary file is cut at \n alone; a lone \r ends a line for the csv module too.
            lines = io.StringIO(text, newline="").readlines() if "\r" in text else [text]
            if undecodable is not None:
                before = "" if lines[-1].endswith("\r") else lines.pop()
                yield from lines
                problem = _not_utf8(raw[undecodable.start], offset + undecodable.start)
                raise UndecodableError(problem, count + len(lines) + 1, before) from undecodable
            yield from lines
            offset += len(raw)
            count += len(lines)

    def plain_lines(self) -> Iterator[str]:
        """Yield the same for a caller that knows of no rows.

        Raises:
            DeltafitError: the file cannot be unpacked, or a byte is no text.
        """
        try:
            yield from self.lines()
        except UndecodableError as error:
            raise DeltafitError(f"{self.path}, line {error.line}: {error}") from error


def open_text(path: Path) -> TextFile:
    """Return a file of text with its encoding: UTF-8, or Windows-1252, which Latin-1 is part of.

    It is Windows-1252 if a byte is not UTF-8 and no character beyond ASCII is: a file that has such
    is UTF-8 with a fault, and is read until that is met. So is one with more such bytes than a
    language with a Latin alphabet has.

    Raises:
        DeltafitError: it cannot be read or unpacked, is empty, or its first bytes tell that it is
            no such text.
    """
    start = next(_raw_lines(path), b"")
    if not start:
        raise DeltafitError(f"{path} is empty.")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DeltafitError(f"{path} is UTF-16 text (byte 0). Save it as UTF-8.")
    if start.startswith(b"PK\x03\x04"):
        raise DeltafitError(f"{path} is a packed file, not text (byte 0). Unpack or export it.")
    found = _first_of_windows(path)
    if found is None:
        return TextFile(path)
    place, value = found
    return TextFile(
        path,
        "cp1252",
        f"{path}: read as Windows-1252 (Latin-1), since byte {place} (0x{value:02X}) is not UTF-8; "
        f"it is {bytes([value]).decode('cp1252')!r} so. Save it as UTF-8 if that is wrong.",
    )


def _first_of_windows(path: Path) -> tuple[int, int] | None:
    """Return the first byte that is not UTF-8 and its place, if the file is Windows-1252."""
    offset, found, high, letters = 0, None, 0, 0
    for raw in _raw_lines(path):
        ascii_part = raw.translate(None, delete=_HIGH)
        high += len(raw) - len(ascii_part)
        letters += len(ascii_part.translate(None, delete=_NO_LETTERS))
        if not raw.isascii():
            try:
                raw.decode("utf-8")
                return None
            except UnicodeDecodeError as error:
                # Two thirds of a character at the end, as of “, are a file that was cut off.
                cut = error.reason == "unexpected end of data" and error.end > error.start + 1
                mixed = not raw.decode("utf-8", "ignore").isascii()
                if cut or mixed or _undefined(raw):
                    return None
                found = found or (offset + error.start, raw[error.start])
        offset += len(raw)
    foreign = high > _FEW and high > _MOST * letters
    return None if foreign else found


def _undefined(raw: bytes) -> bool:
    """Say whether a line holds a byte that Windows-1252 has no character for."""
    return bool(set(raw) & {0x81, 0x8D, 0x8F, 0x90, 0x9D})


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            packed = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            yield from gzip.GzipFile(fileobj=file) if packed else file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DeltafitError(
            f"{path} cannot be unpacked: {error}. It is damaged or was cut off; get it again."
        ) from error
    except OSError as error:
        raise DeltafitError(f"Could not read {path}: {error.strerror or error}.") from error


def _not_utf8(value: int, place: int) -> str:
    return (
        f"byte {place} (0x{value:02X}) is not UTF-8, and the file as a whole is not Windows-1252 "
        "(Latin-1) either. It is damaged, was cut off or mixes the two; save it as UTF-8."
    )
