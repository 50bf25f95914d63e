"""Which option of a multiple-choice question an answer names, as lmms-eval 0.7.3 reads it from what a model says."""

import re
import string
from collections.abc import Mapping, Sequence

_OUTER = ",.!?;:'\""
_FORMS = ("({})", "{}.", "{}:", "{})", "{} ", "{}")
"""How a letter is written, what is more surely meant first."""
_PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is"),
    *("best answer is", "the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is"),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_MARKED = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
"""Words that are a letter with marks."""
_A_COUNTS_AS_ARTICLE = 3
"""Words; in a longer answer an A may be an article."""


def option_letter(said: str, letters: Sequence[str]) -> str:
    """The letter that an answer names, empty if none: of MMStar and of RealWorldQA's questions with options.

    One that the answer begins or ends with, else the last one behind a phrase such as *the answer is*, else the last
    one in the first of `_FORMS` that occurs.
    """
    text = said.strip()
    for mark in _OUTER:
        text = text.strip(mark)
    bare = text.strip()
    if bare and bare[0] in letters and not bare[1:2].isalpha():
        return bare[0]
    if bare and bare[-1] in letters and not bare[-2:-1].isalpha():
        return bare[-1]
    padded = f" {text} "
    behind = [
        (padded.find(letter, start + len(phrase)), letter)
        for phrase in _PHRASES
        if (start := padded.lower().find(phrase)) >= 0
        for letter in letters
    ]
    written = ([(padded.rfind(form.format(each)), each) for each in letters] for form in _FORMS)
    return next(filter(None, map(_last, (behind, *written))), "")


def _last(found: Sequence[tuple[int, str]]) -> str:
    """The letter at the last of some places, -1 being none."""
    place, letter = max(found, key=lambda each: each[0], default=(-1, ""))
    return letter if place >= 0 else ""


def first_option_letter(said: str) -> str:
    """AI2D's: the letter with a full stop that an answer begins with, else all of it."""
    found = re.match(r"\s*([A-Z])\.", said)
    return found[1] if found else said


def single_option(said: str, options: Mapping[str, str]) -> str:
    """MMBench's: the only letter among the words, else the only option whose text occurs, else `option_letter`."""
    words = said.split()
    alone = _only(words, "{}")
    if alone and not ("A" in words and len(words) > _A_COUNTS_AS_ARTICLE):
        return alone
    marked = (_only(words, form) for form in _MARKED)
    named = [letter for letter, text in options.items() if text.lower() in said.lower()]
    return next(filter(None, marked), "") or (
        named[0] if len(named) == 1 else option_letter(said, [*options])
    )


def _only(words: Sequence[str], form: str) -> str:
    """The letter that alone among A to E is a word of this form."""
    found = [letter for letter in string.ascii_uppercase[:5] if form.format(letter) in words]
    return found[0] if len(found) == 1 else ""
