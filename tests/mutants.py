"""Small changes to good input, each as a broken tool, a careless edit or another program would make it.

Deterministic: the same generator gives the same mutant. A test asks that a mutant is either read, or refused with an
`AegisError`; which of the two is for the tests of single cases.
"""

import json
import math
import random
from collections.abc import Callable
from typing import Any

NASTY_TEXTS = (
    "",
    " ",
    "\t\n",
    "null",
    "NaN",
    "<image>",
    "<|im_end|>",
    "</s>",
    "\u2028line\u2029\u0085\x0b\x0c\x1c\x1ebreaks",
    "\ufeffwith a mark before it",
    "\x00",
    "\ud800",
    "e\u0301 \u202e right to left \U0001f916",
    "../../etc/passwd",
    "~/+ = , :",
    "{question} %s {{ x }} \\",
    "long " * 2000,
)
NASTY_NUMBERS = (
    0,
    -1,
    1,
    True,
    False,
    2**31,
    2**63,
    -(10**400),
    0.5,
    -0.0,
    1e308,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
)


_NASTY_BYTES = (b"\xff\xfe", b"\x00", b"\r\n", b"\n\n", b"\x80", b"9" * 5000, b"[" * 100_000, b"{")
"""Too many digits and too deep for Python's `json` among them, which says so with a ValueError and a RecursionError."""


def _nested(depth: int) -> list[Any]:
    """A list in a list in a list; fresh, for callers change what they get."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _nasty(rng: random.Random) -> Any:
    """A value that few expect."""
    return rng.choice(
        [
            None,
            [],
            {},
            [None],
            {"": None},
            _nested(50),
            rng.choice(NASTY_TEXTS),
            rng.choice(NASTY_NUMBERS),
            [rng.choice(NASTY_NUMBERS)] * 3,
            {"answer": rng.choice(NASTY_TEXTS)},
        ]
    )


def mutate_json(value: Any, rng: random.Random, changes: int = 1) -> Any:
    """A copy of a JSON value with so many changes at random places; `value` is left as it is.

    A change replaces, removes, doubles, renames, wraps or adds. What comes back may hold NaN, infinities, integers of
    any size and lone surrogates, all of which `json.dumps` writes.
    """
    holder = [json.loads(json.dumps(value))]
    for _ in range(changes):
        places = list(_places(holder))
        if not places:
            return _nasty(rng)
        parent, key = rng.choice(places)
        _change(parent, key, rng)
    return holder[0] if holder else None


def _places(holder: Any) -> Any:
    """(container, key or index) of every value below a container, the nearest first."""
    waiting = [holder]
    for container in waiting:
        for key in container if isinstance(container, dict) else range(len(container)):
            yield container, key
            if isinstance(container[key], dict | list):
                waiting.append(container[key])


def _change(parent: Any, key: Any, rng: random.Random) -> None:
    """One change of the value that `parent` holds at `key`."""
    value = parent[key]
    kind = rng.choice(("replace", "replace", "remove", "double", "rename", "wrap", "retype", "add"))
    if kind == "replace":
        parent[key] = _nasty(rng)
    elif kind == "remove":
        del parent[key]
    elif kind == "double" and isinstance(parent, list):
        parent.insert(key, json.loads(json.dumps(value)))
    elif kind == "rename" and isinstance(parent, dict):
        parent[rng.choice((key + "s", key.upper(), f" {key}", "", "__class__"))] = parent.pop(key)
    elif kind == "wrap":
        parent[key] = rng.choice(([value], {"value": value}, [value, value]))
    elif kind == "retype":
        parent[key] = _retyped(value)
    elif isinstance(parent, dict):
        parent[rng.choice(("extra", "id", "type", "\u2028"))] = _nasty(rng)
    else:
        parent.append(_nasty(rng))


def _retyped(value: Any) -> Any:
    """Nearly the same value as another type: a number as text, text as its letters, a list as its first."""
    retyped: dict[type, Callable[[Any], Any]] = {
        bool: int,
        int: str,
        float: str,
        str: list,
        list: lambda items: items[0] if items else None,
        dict: lambda items: [list(pair) for pair in items.items()],
        type(None): lambda _: "null",
    }
    return retyped[type(value)](value)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A file that was cut off, flipped, filled with zeros, doubled, or begun with what another program writes first."""
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    kind = rng.choice(("cut", "flip", "zero", "remove", "double", "insert", "front", "empty"))
    if kind == "cut":
        return data[:start]
    if kind == "flip":
        flipped = bytearray(data)
        for _ in range(min(len(data), rng.randint(1, 8))):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == "zero":
        return data[:start] + bytes(end - start) + data[end:]
    if kind == "remove":
        return data[:start] + data[end:]
    if kind == "double":
        return data[:end] + data[start:]
    if kind == "insert":
        return data[:start] + rng.choice(_NASTY_BYTES) + data[start:]
    if kind == "front":
        return (
            rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"version https://git-lfs\n", b"\n"))
            + data
        )
    return b""


def mutate_text(text: str, rng: random.Random) -> str:
    """A text with a nasty piece in it, a part of it lost or doubled, other ends of lines, or nothing of it."""
    start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    return rng.choice(
        (
            text[:start] + rng.choice(NASTY_TEXTS) + text[start:],
            text[:start] + rng.choice(NASTY_TEXTS) + text[end:],
            text[:start] + text[end:],
            text[:end] + text[start:],
            text[:start],
            text.replace("\n", rng.choice(("\r\n", "\r", "\n\n", "\u2028", ""))),
            "\ufeff" + text,
            text.swapcase(),
            "",
        )
    )
