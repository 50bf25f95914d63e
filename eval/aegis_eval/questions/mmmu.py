"""MMMU (arXiv 2311.16502): questions of college courses, some about several pictures, some without options.

Asked as lmms-eval 0.7.3 asks them, pictures first, and scored as it scores them, with two differences: an answer in
which no option can be found is wrong, where it draws one at random; and of an open question that has several answers
each is right, as MMMU's authors have it.
"""

import ast
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from aegis_eval.questions.records import Json, Record, field, shown
from aegis_policy.vlm.families import WholePrompt

_BY_LETTER = "Answer with the option's letter from the given choices directly."
_BY_WORD = "Answer the question using a single word or phrase."
_SUBJECT = re.compile(r"[^_]+_(.+?)_\d+")
_DISCIPLINES = {
    "art and design": "Art Art_Theory Design Music",
    "business": "Accounting Economics Finance Manage Marketing",
    "science": "Biology Chemistry Geography Math Physics",
    "health and medicine": (
        "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health"
    ),
    "humanities and social science": "History Literature Psychology Sociology",
    "technology and engineering": (
        "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power Materials "
        "Mechanical_Engineering"
    ),
}
_DISCIPLINE_OF = {
    subject: discipline for discipline, subjects in _DISCIPLINES.items() for subject in subjects.split()
}
_OUTER = ",.!?;:'"
_FORMS = ("({})", "{} ", "{}.")
"""How a letter is written; the first that occurs counts."""
_SENTENCE = 5
"""Words; in a longer answer an option may be named by its text."""
_TOLD_BY = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
"""What stands before an answer in a line that explains it."""
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)
"""With commas between groups of digits, with an exponent, and plain."""


def mmmu_record(record: Record, row: Json) -> Record:
    """A question with its options in the prompt, or one that wants a word or number; sorted by discipline.

    Raises:
        ValueError: its options or its answer cannot be used.
    """
    subject = _SUBJECT.fullmatch(record.id)
    asked = replace(record, type=_DISCIPLINE_OF.get(subject[1], subject[1]) if subject else record.type)
    (answer,) = record.answers[:1]
    if field(row, "question_type") != "multiple-choice":
        return replace(
            asked,
            question=WholePrompt(f"{record.question}\n\n{_BY_WORD}"),
            answers=tuple(_list_of_texts(answer)) or (answer,),
            metric=says_openly,
        )
    options = dict(zip(string.ascii_uppercase, _list_of_texts(str(field(row, "options"))), strict=False))
    if answer not in options:
        raise ValueError(f"its answer is {shown(answer)}, and its options are {', '.join(options) or 'none'}")
    listed = "\n".join(f"{letter}. {option}" for letter, option in options.items())
    return replace(
        asked,
        question=WholePrompt(f"{record.question}\n{listed}\n\n{_BY_LETTER}"),
        answers=(answer,),
        metric=partial(_says_option, options),
        chance=1 / len(options),
    )


def _list_of_texts(written: str) -> list[str]:
    """The texts of a list written as Python does; empty of anything else."""
    try:
        value = ast.literal_eval(written)
    except (ValueError, SyntaxError):
        return []
    return [str(each) for each in value] if isinstance(value, list) else []


def named_option(said: str, options: Mapping[str, str]) -> str:
    """The letter of the option that an answer names, empty if none: by its letter, or in a sentence by its text.

    Args:
        said: the answer.
        options: by their letters.
    """
    for mark in _OUTER:
        said = said.strip(mark)
    padded = f" {said} "
    for form in _FORMS:
        if found := [letter for letter in options if form.format(letter) in padded]:
            last = form if form == _FORMS[0] else " {} "
            return max(found, key=lambda letter: padded.rfind(last.format(letter)))
    lower = padded.lower()
    told = [letter for letter, text in options.items() if text.lower() in lower]
    if not told or len(said.split()) <= _SENTENCE:
        return ""
    return max(told, key=lambda letter: lower.rfind(options[letter].lower()))


def _says_option(options: Mapping[str, str], given: str, answers: Sequence[str]) -> float:
    return float(named_option(given, options) == answers[0])


def says_openly(given: str, answers: Sequence[str]) -> float:
    """Whether one of the right answers stands in what was said, or is one of the numbers in it, to two decimals."""
    right = {form for answer in answers for form in _forms(answer)}
    texts = [form for form in right if isinstance(form, str)]
    return float(
        any(
            any(text in said for text in texts) if isinstance(said, str) else said in right
            for part in _told(given)
            for written in (part, *_numbers(part))
            for said in _forms(written)
        )
    )


def _told(given: str) -> list[str]:
    """What each line of an answer comes down to: the least that stands behind a word such as *is*; else all of it."""
    text = given.strip().strip(".").lower()
    lines = text.split("\n")
    told = []
    for number, line in enumerate(lines, start=1):
        last = ("=",) if number == len(lines) else ()
        shortest = ""
        for tail in (line.split(word)[-1].strip() for word in (*_TOLD_BY, *last) if word in line):
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _OUTER:
            told.append(shortest)
    return told or [text]


def _numbers(text: str) -> Iterator[str]:
    for pattern in _NUMBERS:
        yield from re.findall(pattern, text)


def _forms(text: str) -> list[str | float]:
    """A number to two decimals, or a text in lower case; a single letter with a blank on either side of it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
