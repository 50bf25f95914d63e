"""Scores of public VQA benchmarks as their authors define them, answer for answer those of lmms-eval.

VQAv2, OK-VQA and TextVQA (arXiv 1505.00468, section 5): ten people answered, and an answer counts as right as far as
three of the other nine gave it, averaged over leaving out each of the ten; both sides are first brought to a canonical
form. GQA: exact match but for case and punctuation. POPE (arXiv 2305.10355): yes or no, with precision and recall.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Marks in the order of their removal: what goes first decides what stands beside a blank later on."""
_DIGIT_GROUPS = re.compile(r"(?<=\d),+(?=\d)")
_PERIODS = re.compile(r"\.(?!\d)")
_MOST_PERIODS = int(re.UNICODE)
"""The reference gives a flag of `re` where the number of replacements belongs; long answers notice."""
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
    there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
    you're you've
"""


def _mended_contractions() -> dict[str, str]:
    """Each contraction by what is left of it when one apostrophe is missing."""
    mended = {
        right[:place] + right[place + 1 :]: right
        for right in _CONTRACTIONS.split()
        for place, letter in enumerate(right)
        if letter == "'"
    }
    # Two entries of the reference are not of this kind.
    return mended | {
        "somebody'd": "somebodyd",
        "ow's'at": "'ow's'at",
        "'ows'at": "'ow's'at",
        "'ow'sat": "'ow's'at",
    }


_MENDED = _mended_contractions()


def canonical(text: str, *, words_first: bool = True) -> str:
    """An answer as VQA benchmarks compare it: lower case, no articles, digits for words, punctuation out.

    Args:
        text: the answer.
        words_first: commas, question marks and the `'s` of a possessive are parted from words before all else, as for
            OK-VQA and TextVQA, but not for VQAv2.
    """
    if words_first:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    return _words(_without_punctuation(text))


def _without_punctuation(text: str) -> str:
    """A mark beside a blank goes, any other becomes a blank; all go where digits are grouped with commas."""
    out, grouped = text, _DIGIT_GROUPS.search(text) is not None
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_blank or grouped else " ")
    return _PERIODS.sub("", out, count=_MOST_PERIODS)


def _words(text: str) -> str:
    counted = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_MENDED.get(word, word) for word in counted if word not in _ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str], *, words_first: bool = True) -> float:
    """Agreement of an answer with people's, from 0 to 1.

    Args:
        answer: the model's.
        references: what people answered, ten of them in the official data.
        words_first: see `canonical`.

    Raises:
        ValueError: no references.
    """
    if not references:
        raise ValueError("an answer is compared with those of people, and there are none")
    given = canonical(answer, words_first=words_first)
    same = [canonical(each, words_first=words_first) == given for each in references]
    return sum(min(1.0, (sum(same) - mine) / 3) for mine in same) / len(same)


def matches(answer: str, reference: str) -> bool:
    """GQA's exact match: case and punctuation do not count."""
    drop = str.maketrans("", "", string.punctuation)
    return answer.lower().translate(drop) == reference.lower().translate(drop)


def says(answer: str, reference: str) -> bool:
    """POPE's match: case and outer blanks do not count."""
    return answer.lower().strip() == reference.lower().strip()


@dataclass(frozen=True)
class YesNoScores:
    """POPE's figures; precision, recall and F1 are those of the answer yes."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float


def yes_no_scores(answers: Sequence[str], references: Sequence[str]) -> YesNoScores:
    """POPE's figures. An answer is right only if it is the reference but for case and outer blanks.

    Returns:
        `yes_ratio` is the share of yes among the references that are yes or no, as lmms-eval reports it.

    Raises:
        ValueError: no answers, not one a reference, or a reference that is neither yes nor no.
    """
    given, truth = ([each.lower().strip() for each in side] for side in (answers, references))
    if not given or len(given) != len(truth) or set(truth) - {"yes", "no"}:
        raise ValueError(f"{len(given)} answers to {len(truth)} references, which must be yes or no")
    pairs = list(zip(given, truth, strict=True))
    hits = pairs.count(("yes", "yes"))
    false_alarms, misses = pairs.count(("yes", "no")), pairs.count(("no", "yes"))
    precision = hits / (hits + false_alarms) if hits + false_alarms else 0.0
    recall = hits / (hits + misses) if hits + misses else 0.0
    return YesNoScores(
        accuracy=sum(a == b for a, b in pairs) / len(pairs),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        yes_ratio=truth.count("yes") / len(truth),
    )
