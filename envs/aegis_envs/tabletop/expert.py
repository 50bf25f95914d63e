"""A scripted expert. Every action follows from the present state alone, so that a policy can imitate it.

It knows the true positions. Motion is a proportional step towards a goal point with a speed limit; the goal
is chosen by what the gripper holds and where it is, never by a remembered phase.
"""

import numpy as np
from numpy.typing import NDArray

from aegis_envs.tabletop.arm import WORKSPACE_HIGH, WORKSPACE_LOW
from aegis_envs.tabletop.sim import MAX_STEP, TabletopSim, object_height
from aegis_envs.tabletop.tasks import GRASPED_OPENING, Episode

SPEED = 0.028
"""Greatest distance per control step, metres."""
PUSH_SPEED = 0.018
OPEN, CLOSED = 1.0, -1.0

Vector = NDArray[np.float64]


def expert_action(sim: TabletopSim, episode: Episode) -> NDArray[np.float32]:
    """The expert's action (4,) in [-1, 1] for the state `sim` is in."""
    delta, gripper = _STRATEGIES[episode.task](sim, episode)
    return np.append(np.clip(delta / MAX_STEP, -1.0, 1.0), gripper).astype(np.float32)


def _step(tip: Vector, goal: Vector, speed: float = SPEED) -> Vector:
    """A step from `tip` towards `goal`, slowing down over the last few centimetres."""
    offset = np.clip(goal, WORKSPACE_LOW, WORKSPACE_HIGH) - tip
    distance = float(np.linalg.norm(offset))
    return offset * min(0.6, speed / max(distance, 1e-6))


def _from_above(tip: Vector, goal: Vector, slope: float = 2.5, ceiling: float = 0.16) -> Vector:
    """Where to aim so that the fingers come down on `goal` inside a cone and clear its neighbours."""
    sideways = float(np.hypot(*(tip - goal)[:2]))
    return np.array(
        [goal[0], goal[1], min(goal[2] + slope * max(sideways - 0.008, 0.0), max(ceiling, goal[2]))]
    )


def _target(sim: TabletopSim, episode: Episode) -> tuple[Vector, float]:
    """Centre of the target now and half its height."""
    slot = episode.scene.index(episode.target)
    return sim.object_position(slot), object_height(episode.scene.objects[slot])


def _reach(sim: TabletopSim, episode: Episode) -> tuple[Vector, float]:
    tip = sim.tip_position()
    position, half_height = _target(sim, episode)
    goal = position + np.array([0.0, 0.0, half_height + 0.012])
    return _step(tip, _from_above(tip, goal)), OPEN


def _grasp_point(position: Vector) -> Vector:
    return np.array([position[0], position[1], max(position[2], 0.026)])


def _holds(sim: TabletopSim, position: Vector) -> bool:
    """The gripper has closed around something at `position`."""
    offset = sim.tip_position() - _grasp_point(position)
    return bool(sim.gripper_opening() < GRASPED_OPENING and np.linalg.norm(offset) < 0.025)


def _grasp(sim: TabletopSim, position: Vector) -> tuple[Vector, float]:
    """Come down open, close when the object is between the fingers."""
    tip = sim.tip_position()
    goal = _grasp_point(position)
    offset = tip - goal
    if np.hypot(offset[0], offset[1]) < 0.014 and abs(offset[2]) < 0.012:
        return np.zeros(3), CLOSED
    return _step(tip, _from_above(tip, goal)), OPEN


def _pick(sim: TabletopSim, episode: Episode) -> tuple[Vector, float]:
    position, _ = _target(sim, episode)
    if not _holds(sim, position):
        return _grasp(sim, position)
    tip = sim.tip_position()
    return _step(tip, np.array([tip[0], tip[1], 0.18])), CLOSED


def _bowl(sim: TabletopSim, episode: Episode) -> tuple[Vector, float]:
    bowl = episode.scene.bowl
    assert bowl is not None, "the bowl task always has a bowl"
    tip = sim.tip_position()
    position, half_height = _target(sim, episode)
    above = np.array([bowl.x, bowl.y])
    sideways = float(np.linalg.norm(position[:2] - above))
    if not _holds(sim, position):
        if sideways < 0.05 and tip[2] > 0.06:
            return np.zeros(3), OPEN
        return _grasp(sim, position)
    release_z = 0.055 + half_height
    if sideways < 0.02 and tip[2] < release_z + 0.02:
        return np.zeros(3), OPEN
    carry_z = 0.13 if sideways > 0.04 else release_z
    # Up first, then across: sideways motion starts once the object clears the rim and its neighbours.
    share = float(np.clip((tip[2] - 0.05) / 0.05, 0.0, 1.0))
    across = tip[:2] + share * (above - tip[:2])
    return _step(tip, np.array([*across, carry_z])), CLOSED


def _push(sim: TabletopSim, episode: Episode) -> tuple[Vector, float]:
    zone = episode.zone_of()
    tip = sim.tip_position()
    position, _ = _target(sim, episode)
    goal = np.array([zone.x, zone.y])
    way = goal - position[:2]
    left = float(np.linalg.norm(way))
    if left < 0.015:
        return np.array([0.0, 0.0, SPEED]), CLOSED
    way /= left
    offset = tip[:2] - position[:2]
    along = float(offset @ way)
    aside = offset - along * way
    if tip[2] < 0.05 and -0.10 < along < -0.02 and np.linalg.norm(aside) < 0.028:
        return _pushing_step(way, aside, left, tip), CLOSED
    behind = position[:2] - 0.065 * way
    approach = np.array([*behind, 0.03])
    if tip[2] < 0.08 and np.linalg.norm(tip[:2] - behind) > 0.03:
        # Low and in the wrong place: rise before going round the object.
        return np.array([0.0, 0.0, SPEED]), CLOSED
    return _step(tip, _from_above(tip, approach, ceiling=0.14)), CLOSED


def _pushing_step(way: Vector, aside: Vector, left: float, tip: Vector) -> Vector:
    """Along the line to the zone, drifting back onto it, slower near the end."""
    forward = min(PUSH_SPEED, 0.004 + 0.25 * left)
    sideways = forward * way - 0.5 * aside
    return np.array([*sideways, np.clip(0.03 - tip[2], -0.01, 0.01)])


_STRATEGIES = {"reach": _reach, "push": _push, "pick": _pick, "bowl": _bowl}
