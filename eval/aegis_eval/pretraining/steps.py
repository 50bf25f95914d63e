"""The steps of one part of `aegis-pretrain`: data parallel, saved now and then, continued where they were left."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from aegis_eval.pretraining.optimizers import Schedule
from aegis_eval.pretraining.state import TrainingState

_SHOWN_EVERY = 20


def take_steps(
    title: str,
    module: nn.Module,
    batch_at: Callable[[int], tuple[Any, ...]],
    schedule: Schedule,
    optimizers: Sequence[torch.optim.Optimizer],
    state: TrainingState,
    accelerator: Accelerator,
    *,
    begun: tuple[int, float],
    save_freq: int,
    after_step: Callable[[int, tqdm], None] | None = None,
) -> float:
    """Train `module` to the end of the schedule.

    Args:
        title: of the progress bar.
        module: from a batch to a loss.
        batch_at: from a step to the module's arguments, on any device.
        schedule: of the learning rate; its length is the training's.
        optimizers: of the module's parameters.
        state: saved on the first rank after every `save_freq` steps and the last.
        accelerator: of this process.
        begun: steps that are done, and the seconds they took.
        save_freq: steps.
        after_step: called on the first rank with the number of steps done and the progress bar, before a save.

    Returns:
        The seconds that all steps took.
    """
    prepared, *prepared_optimizers = accelerator.prepare(module, *optimizers)
    first, seconds = begun
    main = accelerator.is_main_process
    with tqdm(total=schedule.steps, initial=first, desc=title, unit="step", disable=not main) as bar:
        for step in range(first, schedule.steps):
            schedule.set(optimizers, step)
            batch = [_moved(part, accelerator.device) for part in batch_at(step)]
            with accelerator.autocast():
                loss = prepared(*batch)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(module.parameters(), 1.0)
            for optimizer in prepared_optimizers:
                optimizer.step()
                optimizer.zero_grad()
            bar.update()
            done = step + 1
            if not main:
                continue
            if done % _SHOWN_EVERY == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
            if after_step is not None:
                after_step(done, bar)
            if done % save_freq == 0 or done == schedule.steps:
                state.save(done, seconds + bar.format_dict["elapsed"])
        seconds += float(bar.format_dict["elapsed"])
    return seconds


def _moved(part: Any, device: torch.device) -> Any:
    return part.to(device) if hasattr(part, "to") else part
