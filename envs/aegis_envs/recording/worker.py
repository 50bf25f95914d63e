"""Simulation in worker processes. They import this module and the simulator's, and neither torch nor lerobot.

A worker unpickles the functions it is given, which imports the modules these live in: a worker whose first function
lived beside the dataset writer took seconds to start.
"""

import multiprocessing
import signal
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from aegis_envs.recording.episode_files import EpisodeFolder
from aegis_policy.support.child_processes import watch_parent, without_main

if TYPE_CHECKING:
    from aegis_envs.recording.sources import Demonstration, Recipe, Source


def begin() -> None:
    """Make this process a worker: it ends with its parent, and leaves Ctrl-C to it to finish its own episode."""
    watch_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def simulate[R: "Recipe", D: "Demonstration"](
    source: "Source[R, D]", recipe: R, episodes: int, folder: EpisodeFolder, num_workers: int
) -> Generator[D]:
    """The demonstrations in slot order, each as soon as its file is there; workers run ahead of the reader.

    Raises:
        SimulatorError: an expert failed, or this machine cannot render.
        BrokenProcessPool: a worker was killed.
    """
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(num_workers, context, initializer=begin) as pool:
        try:
            with without_main():
                running = {
                    slot: pool.submit(source.demonstrate_to_file, recipe, slot, folder.file(slot))
                    for slot in folder.missing(episodes)
                }
            for slot in range(episodes):
                if slot in running:
                    running[slot].result()
                yield source.load(folder.file(slot))
        finally:
            pool.shutdown(cancel_futures=True)
