"""Which of the tabletop's cameras a policy sees."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lerobot.utils.constants import OBS_IMAGES, OBS_STATE

from aegis_envs.tabletop.env import STATE_DIM
from aegis_envs.tabletop.sim import CAMERAS, IMAGE_SIZE
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json

_KEY = f"{OBS_IMAGES}."


def names_in(text: str) -> list[str]:
    """What commas part, without outer blanks."""
    return [name.strip() for name in text.split(",")]


def check_cameras(cameras: str | None, dataset: Path | None = None) -> None:
    """Refuse cameras that the tabletop or the LeRobotDataset in this folder does not have.

    Raises:
        AegisError: names the first.
    """
    wanted = names_in(cameras) if cameras is not None else []
    if absent := [name for name in wanted if name not in CAMERAS]:
        raise AegisError(f"--cameras: {absent[0]!r} is unknown; the tabletop has {' and '.join(CAMERAS)}.")
    recorded = _cameras_in(dataset) if dataset is not None else list(CAMERAS)
    if absent := [name for name in wanted if name not in recorded]:
        raise AegisError(
            f"--cameras={cameras}: --dataset={dataset} has no camera {absent[0]!r}; "
            f"it has {', '.join(recorded) or 'none'}."
        )


def inputs_flag(cameras: Sequence[str], dataset: Path | None = None) -> str:
    """The flag that lets a policy see these of the tabletop's cameras alone, and the state.

    Args:
        cameras: in the order in which the policy sees them.
        dataset: folder of the demonstrations, where they are not recorded at the usual size.
    """
    size = IMAGE_SIZE if dataset is None else _recorded(dataset)[f"{_KEY}{cameras[0]}"]["shape"][0]
    seen = {f"{_KEY}{name}": {"type": "VISUAL", "shape": [3, size, size]} for name in cameras}
    inputs = {**seen, OBS_STATE: {"type": "STATE", "shape": [STATE_DIM]}}
    return f"--policy.input_features={json.dumps(inputs)}"


def _cameras_in(dataset: Path) -> list[str]:
    return [key.removeprefix(_KEY) for key in _recorded(dataset) if key.startswith(_KEY)]


def _recorded(dataset: Path) -> Mapping[str, Any]:
    return read_json(dataset / "meta" / "info.json")["features"]
