"""Questions that join two attributes and a relation. Training asks about each alone and never about two together.

"What colour is the cube left of the green sphere?" needs the cubes, the side and the colour of the one that is left.
A wording is asked only if the answer follows from it: exactly one thing fits, and everything it could be mistaken for
is clearly on one side or the other. Torch-free.
"""

from collections.abc import Callable

import numpy as np

from aegis_envs.scene import COLORS, SHAPES
from aegis_eval.phrasings import COMPOSED_COLOUR, COMPOSED_EXISTENCE, COMPOSED_SHAPE, RELATIONS
from aegis_eval.scene_view import CLEAR, Question, View, choose, with_article


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
    """Yes and no as often; half of the missing things are there, but on the other side."""
    anchor, axis, side = _reference(view, rng)
    beyond = _sides(view, axis, anchor)
    there = [view.objects[index].name for index, where in beyond.items() if where == side]
    if not there:
        return None
    answer = choose(rng, ("yes", "no"))
    names = there
    if answer == "no":
        present = {thing.name for thing in view.objects}
        absent = [name for color in COLORS for shape in SHAPES if (name := f"{color} {shape}") not in present]
        opposite = [view.objects[index].name for index, where in beyond.items() if where == 1 - side]
        names = opposite if opposite and rng.random() < 0.5 else absent
    text = choose(rng, COMPOSED_EXISTENCE).format(
        a_name=with_article(choose(rng, names)),
        relation=RELATIONS[axis][side],
        other=view.objects[anchor].name,
    )
    return Question(text, answer, "existence+relation")


def _reference(view: View, rng: np.random.Generator) -> tuple[int, str, int]:
    """The thing a relation refers to, the image axis, and which of its two sides is meant."""
    return int(rng.integers(len(view.objects))), choose(rng, ("u", "v")), int(rng.integers(2))


def _sides(view: View, axis: str, anchor: int) -> dict[int, int | None]:
    """For every other object the side of `anchor` it is clearly on, 0 or 1, or None."""
    offsets = {
        index: view.offset(axis, index, anchor) for index in range(len(view.objects)) if index != anchor
    }
    return {index: int(offset > 0) if abs(offset) >= CLEAR else None for index, offset in offsets.items()}


MAKERS: dict[str, Callable[[View, np.random.Generator], Question | None]] = {
    "colour+relation": _colour,
    "shape+relation": _shape,
    "existence+relation": _existence,
}
