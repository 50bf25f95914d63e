"""Questions that join attributes and a relation in a form that training never uses.

Training asks for the colour of the only cube, and whether two things named in full lie left and right of each other.
"What colour is the cube left of the green sphere?" needs the cubes, the side and the colour of the one that is there.
A wording is asked only if the answer follows from it: exactly one thing fits, and everything it could be mistaken for
is clearly on one side or the other. Torch-free.
"""

import numpy as np

from aegis_envs.tabletop.scene import COLORS, SHAPES
from aegis_eval.questions.phrasings import COMPOSED_COLOUR, COMPOSED_EXISTENCE, COMPOSED_SHAPE, RELATIONS
from aegis_eval.questions.view import CLEAR, Maker, Question, View, choose, with_article


def _colour(view: View, rng: np.random.Generator) -> Question | None:
    return _attribute(
        view, rng, known="shape", asked="color", kind="colour+relation", phrasings=COMPOSED_COLOUR
    )


def _shape(view: View, rng: np.random.Generator) -> Question | None:
    return _attribute(
        view, rng, known="color", asked="shape", kind="shape+relation", phrasings=COMPOSED_SHAPE
    )


def _attribute(
    view: View, rng: np.random.Generator, *, known: str, asked: str, kind: str, phrasings: tuple[str, ...]
) -> Question | None:
    """Ask for one attribute of the only thing with `known` on a side of another thing.

    Where the scene has it, a second thing with `known` lies on the other side, so that the relation decides.
    """
    anchor, axis, side = _reference(view, rng)
    beyond = _sides(view, axis, anchor)
    values = sorted({getattr(view.objects[index], known) for index in beyond})
    fitting = []
    for value in values:
        alike = [index for index in beyond if getattr(view.objects[index], known) == value]
        there = [index for index in alike if beyond[index] == side]
        if len(there) == 1 and None not in [beyond[index] for index in alike]:
            fitting.append((len(alike), there[0]))
    if not fitting:
        return None
    most = max(rivals for rivals, _ in fitting)
    index = choose(rng, [index for rivals, index in fitting if rivals == most])
    thing = view.objects[index]
    text = choose(rng, phrasings).format(
        **{known: getattr(thing, known)}, relation=RELATIONS[axis][side], other=view.objects[anchor].name
    )
    return Question(text, getattr(thing, asked), kind)


def _existence(view: View, rng: np.random.Generator) -> Question | None:
    """Ask "is there a cube left of the green sphere?", or "a red object": yes and no as often."""
    anchor, axis, side = _reference(view, rng)
    beyond = _sides(view, axis, anchor)
    if side not in beyond.values():
        return None
    known, values = choose(rng, (("shape", SHAPES), ("color", tuple(COLORS))))
    where = {
        value: [beyond[index] for index in beyond if getattr(view.objects[index], known) == value]
        for value in values
    }
    answer = choose(rng, ("yes", "no"))
    if answer == "yes":
        fitting = [value for value, sides in where.items() if side in sides]
    else:
        absent = [value for value, sides in where.items() if side not in sides and None not in sides]
        # Things that are there, but on the other side, are what tells a model that reads the relation.
        fitting = [value for value in absent if where[value]] or absent
    if not fitting:
        return None
    value = choose(rng, fitting)
    text = choose(rng, COMPOSED_EXISTENCE).format(
        a_thing=with_article(value if known == "shape" else f"{value} object"),
        relation=RELATIONS[axis][side],
        other=view.objects[anchor].name,
    )
    return Question(text, answer, "existence+relation")


def _reference(view: View, rng: np.random.Generator) -> tuple[int, str, int]:
    """The thing a relation refers to, the image axis, and which of its two sides is meant."""
    return int(rng.integers(len(view.objects))), choose(rng, ("u", "v")), int(rng.integers(2))


def _sides(view: View, axis: str, anchor: int) -> dict[int, int | None]:
    """The side of `anchor`, 0 or 1, on which every other object clearly is, or None."""
    offsets = {
        index: view.offset(axis, index, anchor) for index in range(len(view.objects)) if index != anchor
    }
    return {index: int(offset > 0) if abs(offset) >= CLEAR else None for index, offset in offsets.items()}


COMPOSED: dict[str, Maker] = {
    "colour+relation": _colour,
    "shape+relation": _shape,
    "existence+relation": _existence,
}
