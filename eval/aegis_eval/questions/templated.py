"""Templated questions about tabletop scenes, with answers read off the scene description.

Torch-free. Only questions with one defensible answer are asked: properties of a thing that is alone in having
the property named, and spatial relations whose margin in the front image is clear. Answers are balanced so
that a model that cannot see gains little: as many yes as no, and most missing things are near misses.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from aegis_envs.tabletop.scene import COLORS, SHAPES, Scene, depth, lateral
from aegis_eval.questions.composed import COMPOSED
from aegis_eval.questions.phrasings import (
    CAPTION_PROMPTS,
    COLOUR,
    COUNT,
    DETECTION_PROMPT,
    EXISTENCE,
    EXTREME_ASKS,
    EXTREMES,
    RELATION_CHOICE,
    RELATION_WHICH,
    RELATION_YES_NO,
    RELATIONS,
    SHAPE,
    SIDES,
    WHERE,
    templates,
)
from aegis_eval.questions.view import CLEAR, Item, Maker, Place, Question, View, choose, with_article

POSITION_BINS = 16
MAX_COUNT = 4
_RARITY = np.array([0.7, 0.7, 1.5, 3.0, 5.0])
"""Weights of the counts 0..4: few scenes have four of anything."""
_SPAN = 0.44
"""Metres of table that fill the image when no projection is given."""


def ask(
    scene: Scene,
    rng: np.random.Generator,
    types: Sequence[str] | None = None,
    n: int = 6,
    place: Place | None = None,
) -> list[Question]:
    """Ask up to `n` different questions about `scene`, the types (default: all) taking turns in random order.

    `place` gives image positions; without it the table itself, seen from above, stands in for the image.
    Fewer than `n` questions come back where the scene does not allow more.

    Raises:
        ValueError: a type that does not exist.
    """
    types = TYPES if types is None else tuple(types)
    unknown = sorted(set(types) - set(MAKERS))
    if unknown:
        raise ValueError(f"unknown question type {', '.join(unknown)}: choose from {', '.join(MAKERS)}")
    view = View(scene, place or table_place(scene))
    asked: dict[str, Question] = {}
    for _ in range(4 * n):
        for index in rng.permutation(len(types)):
            if len(asked) >= n:
                return list(asked.values())
            question = MAKERS[types[index]](view, rng)
            if question is not None:
                asked.setdefault(question.text, question)
    return list(asked.values())


def detection_caption(scene: Scene, place: Place | None = None) -> tuple[str, str]:
    """("detect objects", "x03 y05 green cylinder ; x09 y02 red cube"): bins of the image, left to right."""
    view = View(scene, place or table_place(scene))
    found = sorted(zip(view.uv.tolist(), view.objects, strict=True), key=lambda pair: pair[0])
    return DETECTION_PROMPT, " ; ".join(f"{_bins(*uv)} {thing.name}" for uv, thing in found)


def scene_caption(scene: Scene, rng: np.random.Generator, place: Place | None = None) -> tuple[str, str]:
    """(prompt, "a green cylinder and a red cube"): what is there, from left to right."""
    view = View(scene, place or table_place(scene))
    order = np.argsort(view.uv[:, 0])
    names = [with_article(view.objects[index].name) for index in order]
    return choose(rng, CAPTION_PROMPTS), " and ".join(names)


def table_place(scene: Scene) -> Place:
    """Positions on the table in place of positions in the image, the workspace filling [0, 1] both ways."""

    def place(item: Item) -> tuple[float, float]:
        return 0.5 + lateral(item) / _SPAN, 0.5 + depth(item) / _SPAN

    return place


def all_answers() -> list[str]:
    """Every answer to a question of `TYPES`, sorted."""
    names = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    counts = [str(count) for count in range(MAX_COUNT + 1)]
    sides = [side for pair in SIDES.values() for side in pair]
    return sorted({*COLORS, *SHAPES, *names, *counts, *sides, "yes", "no"})


def all_words(extra: Iterable[str] = ()) -> list[str]:
    """Every word and punctuation mark of any question, caption or answer and of `extra`, sorted."""
    things = [
        *COLORS,
        *SHAPES,
        *(f"{shape}s" for shape in SHAPES),
        "objects",
        "zone",
        "bowl",
        "a",
        "an",
        "and",
        ";",
    ]
    bins = [
        _bins((index + 0.5) / POSITION_BINS, (index + 0.5) / POSITION_BINS) for index in range(POSITION_BINS)
    ]
    words: set[str] = set()
    for text in (*templates(), *things, *bins, *all_answers(), *extra):
        words.update(split_words(text))
    return sorted(words)


def split_words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks, in order."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _colour(view: View, rng: np.random.Generator) -> Question | None:
    alone = [thing for thing in view.objects if len(view.with_shape(thing.shape)) == 1]
    if not alone:
        return None
    thing = choose(rng, alone)
    return Question(choose(rng, COLOUR).format(shape=thing.shape), thing.color, "colour")


def _shape(view: View, rng: np.random.Generator) -> Question | None:
    alone = [thing for thing in view.objects if len(view.with_color(thing.color)) == 1]
    if not alone:
        return None
    thing = choose(rng, alone)
    return Question(choose(rng, SHAPE).format(color=thing.color), thing.shape, "shape")


def _count(view: View, rng: np.random.Generator) -> Question | None:
    """A number from those this scene offers, rarer ones preferred, then something that occurs that often."""
    subjects: dict[int, list[str]] = {}
    kind = rng.choice(3, p=(0.4, 0.4, 0.2))
    if kind == 0:
        for color in COLORS:
            subjects.setdefault(len(view.with_color(color)), []).append(f"{color} objects")
    elif kind == 1:
        for shape in SHAPES:
            subjects.setdefault(len(view.with_shape(shape)), []).append(f"{shape}s")
    elif view.scene.bowl is None:
        subjects[len(view.objects)] = ["objects"]
    numbers = sorted(number for number in subjects if number <= MAX_COUNT)
    if not numbers:
        return None
    weights = _RARITY[numbers]
    number = int(rng.choice(numbers, p=weights / weights.sum()))
    return Question(choose(rng, COUNT).format(plural=choose(rng, subjects[number])), str(number), "count")


def _existence(view: View, rng: np.random.Generator) -> Question | None:
    present = {(thing.color, thing.shape) for thing in view.objects}
    if rng.random() < 0.5:
        color, shape = choose(rng, sorted(present))
        return _existence_question(f"{color} {shape}", "yes", rng)
    colors = {color for color, _ in present}
    shapes = {shape for _, shape in present}
    absent = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in present]
    near = [pair for pair in absent if pair[0] in colors and pair[1] in shapes]
    half = [pair for pair in absent if (pair[0] in colors) != (pair[1] in shapes)]
    draw = rng.random()
    candidates = (near if draw < 0.75 else half if draw < 0.9 else absent) or half or absent
    color, shape = choose(rng, candidates)
    return _existence_question(f"{color} {shape}", "no", rng)


def _existence_question(name: str, answer: str, rng: np.random.Generator) -> Question:
    return Question(choose(rng, EXISTENCE).format(a_name=with_article(name)), answer, "existence")


def _relation(view: View, rng: np.random.Generator) -> Question | None:
    axis = choose(rng, ("u", "v"))
    count = len(view.objects)
    pairs = [
        (index, other)
        for index in range(count)
        for other in range(count)
        if index != other and abs(view.offset(axis, index, other)) >= CLEAR
    ]
    if not pairs:
        return None
    index, other = choose(rng, pairs)
    side = int(view.offset(axis, index, other) > 0)
    names = {"name": view.objects[index].name, "other": view.objects[other].name}
    form = rng.random()
    if form < 0.5:
        truth = bool(rng.random() < 0.5)
        text = choose(rng, RELATION_YES_NO).format(
            relation=RELATIONS[axis][side if truth else 1 - side], **names
        )
        return Question(text, "yes" if truth else "no", "relation")
    if form < 0.75:
        return Question(choose(rng, RELATION_CHOICE[axis]).format(**names), SIDES[axis][side], "relation")
    offsets = [view.offset(axis, third, other) for third in range(count) if third != other]
    if view.scene.bowl is not None:
        column = "uv".index(axis)
        offsets.append(view.place(view.scene.bowl)[column] - float(view.uv[other, column]))
    on_that_side = [offset for offset in offsets if (offset > 0) == bool(side)]
    if len(on_that_side) != 1 or min(map(abs, offsets)) < CLEAR:
        return None
    text = choose(rng, RELATION_WHICH).format(relation=RELATIONS[axis][side], other=names["other"])
    return Question(text, names["name"], "relation")


def _extreme(view: View, rng: np.random.Generator) -> Question | None:
    (axis, sign), wordings = choose(rng, list(EXTREMES.items()))
    positions = sign * view.uv[:, "uv".index(axis)]
    rivals = list(positions)
    if view.scene.bowl is not None:
        rivals.append(sign * view.place(view.scene.bowl)["uv".index(axis)])
    winner = int(np.argmax(positions))
    if len(positions) < 2 or sorted(rivals)[-2] > positions[winner] - CLEAR:
        return None
    thing = view.objects[winner]
    asked, phrasings = choose(rng, list(EXTREME_ASKS.items()))
    text = choose(rng, phrasings).format(extreme=choose(rng, wordings))
    return Question(text, getattr(thing, asked), "extreme")


def _where(view: View, rng: np.random.Generator) -> Question:
    """Position bins of anything an instruction may name: a training task, not one of `TYPES`."""
    named: list[tuple[str, Item]] = [(thing.name, thing) for thing in view.objects]
    named += [(f"{zone.color} zone", zone) for zone in view.scene.zones]
    if view.scene.bowl is not None:
        named.append(("bowl", view.scene.bowl))
    name, item = choose(rng, named)
    return Question(choose(rng, WHERE).format(name=name), _bins(*view.place(item)), "where")


def _bins(u: float, v: float) -> str:
    column, row = (int(np.clip(fraction * POSITION_BINS, 0, POSITION_BINS - 1)) for fraction in (u, v))
    return f"x{column:02d} y{row:02d}"


_TRAINED: dict[str, Maker] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "existence": _existence,
    "relation": _relation,
    "extreme": _extreme,
}
MAKERS: dict[str, Maker] = {**_TRAINED, "where": _where, **COMPOSED}
"""Every type of question, by its name; a new one is a function of (view, rng), a line here and its phrasings."""
TYPES = tuple(_TRAINED)
"""What a benchmark asks of what training asks."""
COMPOSED_TYPES = tuple(COMPOSED)
"""Forms of question that training never uses, see `aegis_eval.questions.composed`."""
