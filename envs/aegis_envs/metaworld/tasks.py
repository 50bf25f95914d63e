"""The 50 Meta-World tasks as LeRobot names, describes and groups them; needs neither Meta-World nor LeRobot's import.

LeRobot keeps them in a data file. Policies trained here therefore hear the sentences that LeRobot's own
`--env.type=metaworld` says.
"""

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from aegis_envs.errors import MetaworldError

_PREFIX = "metaworld-"


@cache
def _lerobot_table() -> dict[str, Any]:
    # Found, not imported: simulation workers start without `import lerobot`, which loads torch.
    spec = importlib.util.find_spec("lerobot")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations)))
    return json.loads((folder / "envs" / "metaworld_config.json").read_text())


def descriptions() -> dict[str, str]:
    """The sentence of each task, by its name (`reach-v3`), in the order of Meta-World's task numbers."""
    table = _lerobot_table()
    numbers: dict[str, int] = table["TASK_NAME_TO_ID"]
    return {name: table["TASK_DESCRIPTIONS"][name] for name in sorted(numbers, key=numbers.__getitem__)}


def groups() -> dict[str, list[str]]:
    """Task names by difficulty: easy, medium, hard, very_hard; and all."""
    return {**_lerobot_table()["DIFFICULTY_TO_TASKS"], "all": list(descriptions())}


def parse_tasks(text: str | None) -> list[str]:
    """Task names of a comma list of names (`reach-v3`, `metaworld-reach-v3`) and groups, each once.

    Raises:
        MetaworldError: a name that is neither, or none at all.
    """
    chosen: list[str] = []
    for item in (text or "").split(","):
        name = item.strip().removeprefix(_PREFIX)
        if name in groups():
            chosen += groups()[name]
        elif name in descriptions():
            chosen.append(name)
        else:
            raise MetaworldError(
                f"--env.task={text} is not a Meta-World task: choose from {', '.join(groups())} or, joined with "
                f"commas, {', '.join(descriptions())}."
            )
    return list(dict.fromkeys(chosen))
