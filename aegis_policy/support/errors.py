"""The error a user may cause: one sentence that says what is wrong, where, and what to do."""

from collections.abc import Collection


class AegisError(Exception):
    """Input that cannot be used. The message is one sentence naming the flag, file or key and the mend.

    It is no `ValueError`: draccus replaces those, when a configuration raises them, by a sentence of its own.
    """


def one_line(error: Exception, most: int = 300) -> str:
    """What somebody else's error says, its lines joined and cut after so many characters; its type, if it is silent."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def some(names: Collection[str]) -> str:
    """The first of some names, and how many more there are."""
    return min(names, default="nothing") + (f" and {len(names) - 1} more" if len(names) > 1 else "")
