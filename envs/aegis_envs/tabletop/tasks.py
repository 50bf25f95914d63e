"""What can be asked of the arm, in which words, and when it has been done, or done to the wrong object.

Nothing here renders.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aegis_envs.errors import TabletopError
from aegis_envs.tabletop.scene import Scene, Zone
from aegis_envs.tabletop.sim import TabletopSim, object_height

GRASPED_OPENING = 0.78
"""The gripper closes to less than this around every object, and is wider when open."""


@dataclass(frozen=True)
class Episode:
    """A scene, where the arm starts, and what is asked.

    `target` names an object ("green cylinder"); `zone` is the colour of the zone of a push, else None.
    """

    task: str
    split: str
    scene: Scene
    target: str
    zone: str | None
    instruction: str
    start: tuple[float, float, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**self.__dict__, "scene": self.scene.to_dict(), "start": list(self.start)}

    def zone_of(self) -> Zone:
        """The zone a push is for."""
        return next(zone for zone in self.scene.zones if zone.color == self.zone)


Check = Callable[[TabletopSim, Episode, int], bool]


@dataclass(frozen=True)
class Task:
    """One kind of request.

    `holds(sim, episode, slot)` says whether the request is met for the object in `slot`; it must hold for
    `hold_steps` steps in a row. Met for another object than the target, the episode ends as a failure.
    """

    name: str
    phrasings: tuple[str, ...]
    max_steps: int
    hold_steps: int
    holds: Check
    x_range: tuple[float, float] = (-0.07, 0.14)
    zones: bool = False
    bowl: bool = False

    def phrase(self, rng: np.random.Generator, target: str, zone: str | None) -> str:
        """One of the task's phrasings, filled in."""
        return self.phrasings[int(rng.integers(len(self.phrasings)))].format(target=target, zone=zone)


def _reached(sim: TabletopSim, episode: Episode, slot: int) -> bool:
    """The fingertips are over the object: within 3 cm sideways and at most 3 cm above its top."""
    offset = sim.tip_position() - sim.object_position(slot)
    above = offset[2] - object_height(episode.scene.objects[slot])
    return bool(np.hypot(offset[0], offset[1]) < 0.03 and above < 0.03)


def _pushed(sim: TabletopSim, episode: Episode, slot: int) -> bool:
    """The object lies still, with its centre inside the zone, on the table."""
    zone = episode.zone_of()
    x, y, z = sim.object_position(slot)
    inside = abs(x - zone.x) < 0.045 and abs(y - zone.y) < 0.045
    on_table = z < object_height(episode.scene.objects[slot]) + 0.01
    return bool(inside and on_table and sim.object_speed(slot) < 0.05)


def _lifted(sim: TabletopSim, episode: Episode, slot: int) -> bool:
    """The object is at least 6 cm above the table, between the fingers."""
    position = sim.object_position(slot)
    height = position[2] - object_height(episode.scene.objects[slot])
    return bool(height > 0.06 and np.linalg.norm(position - sim.tip_position()) < 0.05)


def _in_bowl(sim: TabletopSim, episode: Episode, slot: int) -> bool:
    """The object lies in the bowl and the gripper has let go of it."""
    bowl = episode.scene.bowl
    if bowl is None:
        return False
    position = sim.object_position(slot)
    inside = np.hypot(position[0] - bowl.x, position[1] - bowl.y) < 0.055 and position[2] < 0.06
    released = sim.gripper_opening() > GRASPED_OPENING or np.linalg.norm(position - sim.tip_position()) > 0.06
    return bool(inside and released)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="reach",
            phrasings=("reach the {target}", "move to the {target}", "go to the {target}"),
            max_steps=50,
            hold_steps=3,
            holds=_reached,
        ),
        Task(
            name="push",
            phrasings=(
                "push the {target} to the {zone} zone",
                "slide the {target} into the {zone} zone",
                "move the {target} to the {zone} zone",
            ),
            max_steps=90,
            hold_steps=2,
            holds=_pushed,
            x_range=(-0.11, 0.03),
            zones=True,
        ),
        Task(
            name="pick",
            phrasings=("pick up the {target}", "lift the {target}", "grasp the {target} and lift it"),
            max_steps=70,
            hold_steps=2,
            holds=_lifted,
        ),
        Task(
            name="bowl",
            phrasings=(
                "put the {target} in the bowl",
                "place the {target} in the bowl",
                "drop the {target} into the bowl",
            ),
            max_steps=100,
            hold_steps=2,
            holds=_in_bowl,
            x_range=(-0.09, 0.14),
            bowl=True,
        ),
    )
}


def parse_tasks(text: str | None, flag: str = "--env.task") -> list[str]:
    """Task names from "reach", "reach,pick" or "all" (also None), in the order of `TASKS`.

    Raises:
        TabletopError: an unknown name; names the flag it was given with.
    """
    if text is None or text == "all":
        return list(TASKS)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise TabletopError(
            f"{flag}={text} is not a tabletop task: choose from {', '.join(TASKS)}, a comma list, or all."
        )
    return [name for name in TASKS if name in names]


@dataclass
class Judge:
    """Follows one episode and says when it is over."""

    episode: Episode
    _streaks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._streaks = [0] * len(self.episode.scene.objects)

    def update(self, sim: TabletopSim) -> str | None:
        """Call once a step. "success", "wrong_object" or None while the episode goes on."""
        task = TASKS[self.episode.task]
        goal = self.episode.scene.index(self.episode.target)
        for slot in range(len(self._streaks)):
            holds = task.holds(sim, self.episode, slot)
            self._streaks[slot] = self._streaks[slot] + 1 if holds else 0
        if self._streaks[goal] >= task.hold_steps:
            return "success"
        return "wrong_object" if max(self._streaks) >= task.hold_steps else None


def nearest_object(sim: TabletopSim) -> tuple[str, float]:
    """Name of the object nearest to the fingertips, and its horizontal distance in metres."""
    tip = sim.tip_position()
    distances = [
        float(np.linalg.norm(sim.object_position(slot)[:2] - tip[:2]))
        for slot in range(len(sim.scene.objects))
    ]
    slot = int(np.argmin(distances))
    return sim.scene.objects[slot].name, distances[slot]
