"""Running English text that this machine has anyway: what Python's own modules say of themselves."""

import inspect
import os
import pkgutil
import random
import sys
from importlib import import_module
from pathlib import Path
from pydoc_data.topics import topics

_LEAST, _MOST = 300, 1_200
"""Letters of a text."""
_LEFT_OUT = {"antigravity", "this", "idlelib", "tkinter", "turtle", "turtledemo", "lib2to3", "test"}


def passages(count: int, part: str, seed: int = 0) -> list[str]:
    """So many passages of `anchor` (docstrings of one half of the modules), `docstrings` (of the others) or `topics`.

    The three have no text in common.
    """
    if part == "topics":
        found = [text for _, text in sorted(topics.items())]
    else:
        found = [
            text for module, text in _docstrings() if (sum(module.encode()) % 2 == 0) == (part == "anchor")
        ]
    cut = [
        text[start : start + _MOST] for text in found for start in range(0, max(len(text) - _LEAST, 1), _MOST)
    ]
    long = sorted({text for text in cut if len(text) >= _LEAST})
    random.Random(seed).shuffle(long)
    return long[:count]


def _docstrings() -> list[tuple[str, str]]:
    found = []
    for each in sorted(pkgutil.iter_modules([str(Path(os.__file__).parent)]), key=lambda each: each.name):
        if each.name in _LEFT_OUT or each.name.startswith("_") or each.name not in sys.stdlib_module_names:
            continue
        try:
            module = import_module(each.name)
        except Exception:  # what this machine cannot import
            continue
        for _, thing in sorted(vars(module).items(), key=lambda pair: pair[0]):
            if getattr(thing, "__module__", None) == each.name and (text := inspect.getdoc(thing)):
                found.append((each.name, text))
        if text := inspect.getdoc(module):
            found.append((each.name, text))
    return found
