"""Recording from beginning to end: which expert, whether the place is free, simulate, write, say what came of it."""

import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from aegis_envs.metaworld.source import MetaworldSource
from aegis_envs.recording.episode_files import EpisodeFolder
from aegis_envs.recording.sources import (
    PROVENANCE_FILE,
    Recipe,
    RecordConfig,
    RecordedEnv,
    RecordedLeRobotMetaworld,
    RecordedMetaworld,
    RecordedTabletop,
    Source,
)
from aegis_envs.recording.worker import simulate
from aegis_envs.tabletop.source import TabletopSource
from aegis_policy.support.cli import require_at_least
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import alone, atomic_directory
from aegis_policy.support.json_files import read_json

SOURCES: dict[type[RecordedEnv], Source[Any, Any]] = {
    RecordedTabletop: TabletopSource(),
    RecordedMetaworld: MetaworldSource(),
    RecordedLeRobotMetaworld: MetaworldSource(),
}
"""The simulators whose experts are recorded, by the class behind `--env.type`."""


def record(config: RecordConfig) -> None:
    """Record `config.episodes` demonstrations, continuing an interrupted recording with the same flags.

    Raises:
        AegisError: flags that cannot be used, a `root` that holds something else, an interrupted recording
            with other flags, no off-screen rendering.
    """
    source = SOURCES.get(type(config.env))
    if source is None:
        known = ", ".join(each.__name__ for each in SOURCES)
        raise AegisError(f"env={type(config.env).__name__} has no scripted expert here: take one of {known}.")
    require_at_least(config, episodes=1, num_workers=1, seed=0)
    recipe = source.recipe(config)
    root = config.root or Path("data") / source.name
    config = replace(config, root=root, repo_id=config.repo_id or f"local/{root.name}")
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        _require_same_recording(root, recipe, config)
        with suppress(AegisError), alone(root, "--root"):  # where others may write
            EpisodeFolder(root).remove()
        print(f"{root} already holds this recording, complete ({config.episodes} episodes).")
        return
    with alone(root, "--root"):
        _record(source, recipe, config, root)


def _record(source: Source[Any, Any], recipe: Recipe, config: RecordConfig, root: Path) -> None:
    from aegis_envs.recording.dataset import write_dataset  # brings LeRobot's data sets with it

    finished = EpisodeFolder(root)
    finished.claim(recipe.to_dict())
    if done := config.episodes - len(finished.missing(config.episodes)):
        print(f"continuing: {done} of {config.episodes} episodes are already there")
    try:
        simulated = simulate(source, recipe, config.episodes, finished, config.num_workers)
        # Closed before anything is counted: workers finish the episode they are in.
        with atomic_directory(root) as beside, closing(simulated) as demonstrations:
            frames = write_dataset(source, config, recipe, demonstrations, beside)
    except KeyboardInterrupt:
        done = config.episodes - len(finished.missing(config.episodes))
        print(
            f"\n{done} of {config.episodes} episodes kept: run the same command to continue.", file=sys.stderr
        )
        raise
    except BrokenProcessPool as error:
        raise AegisError(
            f"a simulation worker was killed (out of memory?) at --num_workers={config.num_workers}: "
            "run the same command again, with fewer workers, to continue."
        ) from error
    finished.remove()
    print(f"wrote {root} ({config.episodes} episodes, {frames} frames)")
    for name in (PROVENANCE_FILE, source.tracked):
        if name is not None:
            print(f"wrote {root / name}")


def _require_same_recording(root: Path, recipe: Recipe, config: RecordConfig) -> None:
    provenance = root / PROVENANCE_FILE
    if not provenance.is_file():
        raise AegisError(
            f"--root={root} already holds something else than a recording: choose another folder."
        )
    found = read_json(provenance)
    asked = {**recipe.to_dict(), "episodes": config.episodes, "video": config.video}
    if other := [name for name, value in asked.items() if found.get(name) != value]:
        raise AegisError(
            f"--root={root} already holds a recording with other {', '.join(other)}: "
            "choose another folder or remove it first."
        )
