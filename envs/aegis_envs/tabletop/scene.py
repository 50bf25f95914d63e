"""What lies on the table, as plain data: objects, zones, a bowl, and how random scenes are drawn.

Nothing here renders or simulates. The table frame is metric: x grows towards the front camera, y grows to the
right of the front image, z up; the origin is the centre of the workspace.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_envs.errors import TabletopError

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.06, 0.06),
    "green": (0.05, 0.55, 0.10),
    "blue": (0.08, 0.16, 0.90),
    "yellow": (0.98, 0.88, 0.08),
    "purple": (0.56, 0.10, 0.72),
    "orange": (1.00, 0.45, 0.02),
    "cyan": (0.10, 0.85, 0.88),
    "white": (0.97, 0.97, 0.97),
}
SHAPES: tuple[str, ...] = ("cube", "cylinder", "sphere")

Pair = tuple[str, str]
ALL_PAIRS: tuple[Pair, ...] = tuple(product(COLORS, SHAPES))
UNSEEN_PAIRS: tuple[Pair, ...] = (
    ("red", "sphere"),
    ("green", "cube"),
    ("blue", "cylinder"),
    ("yellow", "sphere"),
    ("purple", "cube"),
)
TRAIN_PAIRS: tuple[Pair, ...] = tuple(pair for pair in ALL_PAIRS if pair not in UNSEEN_PAIRS)

MAX_OBJECTS = 4
MAX_ZONES = 2
OBJECT_X = (-0.14, 0.14)
OBJECT_Y = (-0.18, 0.18)
OBJECT_GAP = 0.11
"""Least distance between the centres of two objects, in metres: the open gripper fits between neighbours."""
ZONE_HALF_SIZE = 0.055
BOWL_RADIUS = 0.062


@dataclass(frozen=True)
class SceneObject:
    """One movable object; `scale` multiplies the nominal size of about 5 cm."""

    color: str
    shape: str
    x: float
    y: float
    yaw: float = 0.0
    scale: float = 1.0

    @property
    def pair(self) -> Pair:
        return self.color, self.shape

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Zone:
    """A flat coloured square on the table, `2 * ZONE_HALF_SIZE` wide."""

    color: str
    x: float
    y: float

    @property
    def name(self) -> str:
        return f"{self.color} zone"


@dataclass(frozen=True)
class Bowl:
    """An open bowl of radius `BOWL_RADIUS` that does not move."""

    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """Everything on the table. At most `MAX_OBJECTS` objects and `MAX_ZONES` zones."""

    objects: tuple[SceneObject, ...]
    zones: tuple[Zone, ...] = ()
    bowl: Bowl | None = None

    def __post_init__(self) -> None:
        if len(self.objects) > MAX_OBJECTS or len(self.zones) > MAX_ZONES:
            raise TabletopError(
                f"a scene holds at most {MAX_OBJECTS} objects and {MAX_ZONES} zones, "
                f"this one has {len(self.objects)} and {len(self.zones)}: leave some out."
            )
        for color in [item.color for item in self.objects] + [item.color for item in self.zones]:
            if color not in COLORS:
                raise TabletopError(f"unknown colour {color!r} in a scene: choose from {', '.join(COLORS)}.")
        for thing in self.objects:
            if thing.shape not in SHAPES:
                raise TabletopError(
                    f"unknown shape {thing.shape!r} in a scene: choose from {', '.join(SHAPES)}."
                )

    def index(self, name: str) -> int:
        """Index of the object called `name` ("green cylinder").

        Raises:
            TabletopError: no such object.
        """
        names = [thing.name for thing in self.objects]
        if name not in names:
            raise TabletopError(f"there is no {name!r} in this scene: choose from {', '.join(names)}.")
        return names.index(name)

    def moved(self, poses: NDArray[np.floating]) -> "Scene":
        """The same things with the objects at `poses` (objects, 4): x, y, z in metres and yaw in radians."""
        objects = tuple(
            replace(thing, x=float(x), y=float(y), yaw=float(yaw))
            for thing, (x, y, _, yaw) in zip(self.objects, poses, strict=True)
        )
        return replace(self, objects=objects)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, read back by `Scene.from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Scene":
        bowl = data.get("bowl")
        return cls(
            objects=tuple(SceneObject(**item) for item in data["objects"]),
            zones=tuple(Zone(**item) for item in data.get("zones", ())),
            bowl=Bowl(**bowl) if bowl else None,
        )


def lateral(thing: SceneObject | Zone | Bowl) -> float:
    """Metres to the right in the front image."""
    return thing.y


def depth(thing: SceneObject | Zone | Bowl) -> float:
    """Metres towards the front camera: the larger, the nearer ("in front")."""
    return thing.x


def sample_scene(
    rng: np.random.Generator,
    n_objects: tuple[int, int] = (2, MAX_OBJECTS),
    *,
    include: Sequence[Pair] = (),
    zones: Sequence[Zone] = (),
    bowl: Bowl | None = None,
    x_range: tuple[float, float] = OBJECT_X,
    y_range: tuple[float, float] = OBJECT_Y,
) -> Scene:
    """Draw a scene without overlaps in which every colour-shape pair occurs once.

    Args:
        rng: the only source of randomness.
        n_objects: least and greatest number of objects.
        include: pairs that must be there, first and in this order; the others are drawn from `ALL_PAIRS`.
        zones: zones to keep free of objects.
        bowl: a bowl to keep free of objects.
        x_range: where object centres may lie, metres.
        y_range: likewise across the image.
    """
    count = max(int(rng.integers(n_objects[0], n_objects[1] + 1)), len(include))
    others = [pair for pair in ALL_PAIRS if pair not in include]
    extra = rng.choice(len(others), size=count - len(include), replace=False)
    pairs = [*include, *(others[int(i)] for i in extra)]
    keep_out = [(zone.x, zone.y, ZONE_HALF_SIZE + 0.045) for zone in zones]
    if bowl is not None:
        keep_out.append((bowl.x, bowl.y, BOWL_RADIUS + 0.06))
    places = _sample_places(rng, count, x_range, y_range, keep_out)
    objects = tuple(
        SceneObject(
            color,
            shape,
            x,
            y,
            yaw=round(float(rng.uniform(-0.3, 0.3)), 4),
            scale=round(float(rng.uniform(0.94, 1.06)), 4),
        )
        for (color, shape), (x, y) in zip(pairs, places, strict=True)
    )
    return Scene(objects, tuple(zones), bowl)


def _sample_places(
    rng: np.random.Generator,
    count: int,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    keep_out: Sequence[tuple[float, float, float]],
) -> list[tuple[float, float]]:
    """Centres at least `OBJECT_GAP` apart and outside every (x, y, radius) of `keep_out`."""
    for _ in range(200):
        places: list[tuple[float, float]] = []
        for _ in range(60):
            x, y = float(rng.uniform(*x_range)), float(rng.uniform(*y_range))
            free = all(np.hypot(x - a, y - b) >= OBJECT_GAP for a, b in places)
            if free and all(np.hypot(x - a, y - b) >= radius for a, b, radius in keep_out):
                places.append((round(x, 4), round(y, 4)))
            if len(places) == count:
                return places
    raise TabletopError(
        f"{count} objects do not fit in x {x_range}, y {y_range} beside zones and bowl: ask for fewer."
    )
