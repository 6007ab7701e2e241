"""Numbers of the command line that are written in words of their own."""

from deltafit.errors import UsageError


def whole_numbers(flag: str, text: str) -> tuple[int, ...]:
    """Return the numbers in "0,1,2".

    Raises:
        UsageError: it is no such list.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"{flag} takes whole numbers with commas; got {text!r}.")
    return tuple(map(int, parts))
