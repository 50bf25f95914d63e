"""Questions that are answered by going somewhere: an instruction names its object by what the VLM knows.

Two of them a scene, alike but for the object that is meant, so that whoever ignores the words is right in one of the
two at most. No policy's demonstrations name anything so. Beside each stands the same as a question in words, for the
VLM. Torch-free.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aegis_envs.tabletop import arm
from aegis_envs.tabletop.scene import SHAPES, TRAIN_PAIRS, Scene, sample_scene
from aegis_envs.tabletop.sim import TabletopSim
from aegis_envs.tabletop.tasks import TASKS, Episode
from aegis_eval.questions.images import all_visible, image_places
from aegis_eval.questions.phrasings import COUNT, EXTREME_ASKS, EXTREMES, RELATION_WHICH, RELATIONS
from aegis_eval.questions.view import CLEAR, View, choose

TASK = "reach"
_OBJECTS = 3
_SIZES = (0.8, 1.25)
"""Scale of the smallest and of the largest object where size is asked for; of others it is 1."""
_ATTEMPTS = 2_000


@dataclass(frozen=True)
class ActedQuestion:
    """A thing to go to, and the same in words.

    Attributes:
        episode: with the instruction; its target is one of `wanted`.
        wanted: the objects, any of which is meant.
        question: for the VLM, about the front image.
        answer: to it.
    """

    episode: Episode
    wanted: frozenset[str]
    question: str
    answer: str


@dataclass(frozen=True)
class _Meant:
    """How an object is named, and the question in words with its answer."""

    name: str
    wanted: tuple[str, ...]
    question: str
    answer: str


_Pair = tuple[_Meant, _Meant]


def _relation(view: View, rng: np.random.Generator) -> _Pair | None:
    """ "the object left of the red cube", or right of it."""
    found = _on_both_sides(view, rng)
    if found is None:
        return None
    axis, anchor, sides = found
    wording, other = choose(rng, RELATION_WHICH), view.objects[anchor].name
    first, second = (
        _Meant(
            f"the object {relation} the {other}",
            (view.objects[index].name,),
            wording.format(relation=relation, other=other),
            view.objects[index].name,
        )
        for relation, index in zip(RELATIONS[axis], sides, strict=True)
    )
    return first, second


def _composed(view: View, rng: np.random.Generator) -> _Pair | None:
    """ "the cube left of the red sphere", or right of it, where there are two cubes."""
    found = _on_both_sides(view, rng)
    if found is None:
        return None
    axis, anchor, sides = found
    shapes = [view.objects[index].shape for index in (anchor, *sides)]
    if shapes[1] != shapes[2] or shapes[0] == shapes[1]:
        return None
    other = view.objects[anchor].name
    first, second = (
        _Meant(
            f"the {shapes[1]} {relation} the {other}",
            (view.objects[index].name,),
            f"what colour is the {shapes[1]} {relation} the {other}?",
            view.objects[index].color,
        )
        for relation, index in zip(RELATIONS[axis], sides, strict=True)
    )
    return first, second


def _extreme(view: View, rng: np.random.Generator) -> _Pair | None:
    """ "the leftmost object", or the rightmost; "the nearest object", or the farthest."""
    axis, kind = choose(rng, ("u", "v")), int(rng.integers(3))
    order = np.argsort(view.uv[:, "uv".index(axis)])
    if any(view.offset(axis, order[i + 1], order[i]) < CLEAR for i in range(len(order) - 1)):
        return None
    wording = choose(rng, EXTREME_ASKS["name"])
    first, second = (
        _Meant(
            f"the {EXTREMES[axis, sign][kind]}",
            (view.objects[index].name,),
            wording.format(extreme=EXTREMES[axis, sign][kind]),
            view.objects[index].name,
        )
        for sign, index in ((-1, order[0]), (1, order[-1]))
    )
    return first, second


def _count(view: View, rng: np.random.Generator) -> _Pair | None:
    """ "the shape there are two of", either of them, or the one that there is one of."""
    alike = {shape: view.with_shape(shape) for shape in SHAPES}
    by_number = {len(things): (shape, things) for shape, things in alike.items()}
    if not {1, 2} <= by_number.keys():
        return None
    wording = choose(rng, COUNT)
    first, second = (
        _Meant(
            f"the shape there {number}",
            tuple(thing.name for thing in things),
            wording.format(plural=f"{shape}s"),
            str(len(things)),
        )
        for number, (shape, things) in (("are two of", by_number[2]), ("is one of", by_number[1]))
    )
    return first, second


def _size(view: View, rng: np.random.Generator) -> _Pair | None:
    """ "the largest object", or the smallest, of three of one shape or of three."""
    names = {thing.scale: thing.name for thing in view.objects}
    wording = choose(rng, EXTREME_ASKS["name"])
    first, second = (
        _Meant(f"the {which} object", (names[size],), wording.format(extreme=f"{which} object"), names[size])
        for which, size in (("smallest", _SIZES[0]), ("largest", _SIZES[1]))
    )
    return first, second


KINDS: dict[str, Callable[[View, np.random.Generator], _Pair | None]] = {
    "relation": _relation,
    "composed": _composed,
    "extreme": _extreme,
    "count": _count,
    "size": _size,
}
"""What a scene can be asked about, by its name: two things that can be meant, or None where it cannot."""


def pairs(kind: str, scenes: int, seed: int) -> Iterator[tuple[ActedQuestion, ActedQuestion]]:
    """Scenes of three objects, each with its two questions; the same for the same kind and seed, however many.

    Objects are of the pairs that demonstrations instruct, and every one of them shows in the front image.
    """
    sim = TabletopSim()
    try:
        for number in range(scenes):
            # Beside the streams that episodes and questions are drawn from, which begin with a split.
            yield _pair(kind, np.random.default_rng([104_729, list(KINDS).index(kind), seed, number]), sim)
    finally:
        sim.close()


def _pair(kind: str, rng: np.random.Generator, sim: TabletopSim) -> tuple[ActedQuestion, ActedQuestion]:
    for _ in range(_ATTEMPTS):
        scene = _scene(kind, rng)
        sim.set_scene(scene)
        places = image_places(sim, scene)
        meant = KINDS[kind](View(scene, lambda item, at=places: at[item.name]), rng)  # type: ignore[misc]
        if meant is not None and all_visible(sim):
            start = arm.HOME_XYZ + np.array([rng.uniform(0, 0.05), rng.uniform(-0.08, 0.08), 0.0])
            phrasing = choose(rng, TASKS[TASK].phrasings)
            first, second = (_acted(each, scene, phrasing, start.tolist()) for each in meant)
            return first, second
    raise AssertionError(f"no scene can be asked about {kind}")


def _scene(kind: str, rng: np.random.Generator) -> Scene:
    chosen = [TRAIN_PAIRS[int(index)] for index in rng.choice(len(TRAIN_PAIRS), size=_OBJECTS, replace=False)]
    scene = sample_scene(rng, (_OBJECTS, _OBJECTS), include=chosen, x_range=TASKS[TASK].x_range)
    if kind != "size":
        return scene
    sizes = rng.permutation([_SIZES[0], 1.0, _SIZES[1]])
    objects = (replace(thing, scale=float(size)) for thing, size in zip(scene.objects, sizes, strict=True))
    return replace(scene, objects=tuple(objects))


def _acted(meant: _Meant, scene: Scene, phrasing: str, start: Sequence[float]) -> ActedQuestion:
    instruction = phrasing.replace("the {target}", meant.name)
    x, y, z = start
    episode = Episode(TASK, "test", scene, meant.wanted[0], None, instruction, (x, y, z))
    return ActedQuestion(episode, frozenset(meant.wanted), meant.question, meant.answer)


def _on_both_sides(view: View, rng: np.random.Generator) -> tuple[str, int, tuple[int, int]] | None:
    """An axis and an object between the two others, and which lies before and which beyond it there, all clearly."""
    found = []
    for axis in ("u", "v"):
        order = [int(index) for index in np.argsort(view.uv[:, "uv".index(axis)])]
        before, anchor, beyond = order
        if min(view.offset(axis, anchor, before), view.offset(axis, beyond, anchor)) >= CLEAR:
            found.append((axis, anchor, (before, beyond)))
    return choose(rng, found) if found else None
