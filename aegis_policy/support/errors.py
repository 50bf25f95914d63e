"""The error a user may cause: one sentence that says what is wrong, where, and what to do."""


class AegisError(Exception):
    """Input that cannot be used. The message is one sentence naming the flag, file or key and the mend.

    It is no `ValueError`: draccus replaces those, when a configuration raises them, by a sentence of its own.
    """
