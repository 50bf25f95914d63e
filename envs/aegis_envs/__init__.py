"""Simulators: a tabletop with instructions that must be understood to be followed, Meta-World drawn fast, LIBERO.

Importing this registers the tabletop's `aegis_tabletop/Reach-v0`, `Push-v0`, `Pick-v0` and `Bowl-v0` with gymnasium.
It imports neither torch nor lerobot, so that simulation workers start quickly; LeRobot's `--env.type=aegis_...`
come with the modules `configuration` of its three folders.
"""

import gymnasium

for _task in ("reach", "push", "pick", "bowl"):
    gymnasium.register(
        id=f"aegis_tabletop/{_task.capitalize()}-v0",
        entry_point="aegis_envs.tabletop.env:TabletopEnv",
        kwargs={"task": _task},
    )
