"""The error a user may cause: one sentence that says what is wrong, where, and what to do."""

from collections.abc import Collection


class AegisError(Exception):
    """Input that cannot be used. The message is one sentence naming the flag, file or key and the mend.

    It is no `ValueError`: draccus replaces those, when a configuration raises them, by a sentence of its own.
    """


def one_line(error: Exception, most: int = 300) -> str:
    """What somebody else's error says, its lines joined and cut after so many characters; its type, if it is silent."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def shortened(value: object, most: int = 60) -> str:
    """A value as Python writes it, cut after so many characters."""
    if isinstance(value, str):
        return repr(value if len(value) <= most else f"{value[:most]}...")
    try:
        said = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists in lists
        return "a value too long to print"
    return said if len(said) <= most else f"{said[:most]}..."


def some(names: Collection[str]) -> str:
    """The first of some names, and how many more there are."""
    return min(names, default="nothing") + (f" and {len(names) - 1} more" if len(names) > 1 else "")
