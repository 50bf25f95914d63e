"""The stages that experiments are made of: recording, training, and everything that is measured of a checkpoint.

Each function names one command of this package or of LeRobot with its flags, how long it may take, and what reads its
result; what runs them is `aegis_eval.experiments.stage`. `device` is `cuda` or `cpu`; without one each command chooses.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aegis_eval.experiments import costs
from aegis_eval.experiments.stage import Stage
from aegis_eval.results import measured
from aegis_eval.results.training_log import METRICS
from aegis_policy.vqa.texts import RUNNING


@dataclass(frozen=True)
class World:
    """A simulator as `aegis-record` and `lerobot-eval` name it: its `--env.type` and further flags of it."""

    type: str = "aegis_tabletop"
    flags: tuple[str, ...] = ()

    def named(self, task: str, split: str | None) -> list[str]:
        """The flags for tasks, with commas, and a split where it has some."""
        chosen = [] if split is None else [f"--env.split={split}"]
        return [f"--env.type={self.type}", f"--env.task={task}", *chosen, *self.flags]


TABLETOP = World()


def recording(
    name: str,
    root: Path,
    *,
    task: str,
    episodes: int,
    seed: int,
    split: str | None = "train",
    world: World = TABLETOP,
    flags: Sequence[str] = (),
) -> Stage:
    """Demonstrations in the LeRobotDataset `root`."""
    command = ["aegis-record", *world.named(task, split)]
    command += [f"--episodes={episodes}", f"--root={root}", f"--seed={seed}", *flags]
    return Stage(
        name,
        f"recording {episodes} demonstrations",
        root / "recording.json",
        command,
        cost=costs.recording(episodes, world.type),
    )


FRESH, TRAINED = "--policy.type=aegis", "--policy.path="
"""What a training begins with: a new policy, or the weights of one."""


def training(
    name: str,
    output_dir: Path,
    *,
    dataset: Path,
    steps: int,
    batch_size: int,
    seed: int,
    saves: int,
    device: str | None,
    flags: Sequence[str],
    cost: float,
    processes: int = 1,
    last_only: bool = False,
    start: Path | None = None,
) -> Stage:
    """A training on a recording, whose pictures are read in its own process.

    Args:
        name: of the stage.
        output_dir: of `lerobot-train`; its figures go to `metrics.jsonl` beside it.
        dataset: folder of the LeRobotDataset.
        steps, batch_size, seed: as `lerobot-train` has them.
        saves: how many checkpoints are kept, the last one included; an interrupted training goes on from one.
        device: see above.
        flags: protection, learning rates and whatever else.
        cost: seconds it may take.
        processes: on how many it is spread.
        last_only: nothing but the last checkpoint stays, and nothing to train it further: a large model's would fill
            the disk.
        start: `pretrained_model` folder of a policy that it begins from, instead of a fresh one.
    """
    saved = saved_steps(steps, saves)
    last = last_checkpoint(output_dir, steps)
    earlier = [last_checkpoint(output_dir, step).parent for step in saved[:-1]]
    spare = [*earlier, last.parent / "training_state" / "optimizer_state.safetensors"]
    command = ["lerobot-train"]
    if processes > 1:
        program = Path(sys.executable).with_name("lerobot-train")
        command = ["torchrun", "--standalone", f"--nproc_per_node={processes}", str(program)]
    command += [FRESH if start is None else f"{TRAINED}{start}", "--dataset.repo_id=local/demonstrations"]
    command += [f"--dataset.root={dataset}", f"--output_dir={output_dir}", f"--steps={steps}"]
    command += [f"--save_freq={saved[0]}", f"--log_freq={max(1, steps // 40)}"]
    command += [f"--batch_size={batch_size}", f"--seed={seed}", "--num_workers=0"]
    command += [*_on(device, "--policy.device"), *flags]
    return Stage(
        name,
        f"training {steps} steps",
        last_file(last),
        command,
        cost=cost,
        read=measured.curves,
        metrics=output_dir.parent / METRICS,
        spare=tuple(spare) if last_only else (),
    )


def saved_steps(steps: int, saves: int) -> list[int]:
    """The steps at which a training of so many saves a checkpoint, the last one included."""
    every = max(1, steps // saves)
    return [*range(every, steps, every), steps]


def last_checkpoint(output_dir: Path, steps: int) -> Path:
    """The `pretrained_model` folder that a training of so many steps ends with."""
    return output_dir / "checkpoints" / f"{steps:06d}" / "pretrained_model"


def last_file(checkpoint: Path) -> Path:
    """What `lerobot-train` writes last of the checkpoint whose `pretrained_model` this is."""
    return checkpoint.parent / "training_state" / "scheduler_state.json"


def rollouts(
    name: str,
    output_dir: Path,
    *,
    checkpoint: Path,
    task: str,
    episodes: int,
    seed: int,
    device: str | None,
    tasks: int = 1,
    split: str | None = None,
    world: World = TABLETOP,
    at_once: int = 20,
) -> Stage:
    """Closed-loop episodes of each of so many tasks, with videos."""
    command = ["lerobot-eval", f"--policy.path={checkpoint}", *world.named(task, split)]
    command += [f"--eval.n_episodes={episodes}", f"--eval.batch_size={min(at_once, episodes)}"]
    command += ["--eval.use_async_envs=false", f"--output_dir={output_dir}", f"--seed={seed}"]
    return Stage(
        name,
        f"rolling out {episodes} {f'{split} ' if split else ''}scenes",
        output_dir / "eval_info.json",
        [*command, *_on(device, "--policy.device")],
        cost=costs.rollouts(episodes, tasks, world.type),
        read=measured.outcomes,
    )


def questions(
    name: str,
    output_dir: Path,
    *,
    checkpoint: Path | None = None,
    vlm: str | None = None,
    samples: int,
    split: str,
    benchmark: str = "tabletop",
    seed: int = 0,
    pretrained: Path | None = None,
    device: str | None,
) -> Stage:
    """VQA of the backbone in a checkpoint, or of a VLM as it is.

    `pretrained` is the `output_dir` of a stage that asked the pretrained VLM the same, which need not be asked again.
    """
    asked = f"--vlm={vlm}" if checkpoint is None else f"--policy.path={checkpoint}"
    command = ["aegis-vqa", asked, f"--benchmark={benchmark}", f"--split={split}", f"--samples={samples}"]
    command += [f"--seed={seed}", f"--output_dir={output_dir}", *_on(device)]
    if pretrained is not None:
        command.append(f"--pretrained_answers={pretrained}")
    return Stage(
        name,
        f"asking {samples} questions",
        output_dir / "results.json",
        command,
        cost=costs.questions(samples),
        read=measured.answers,
    )


def text(
    name: str,
    output_dir: Path,
    *,
    file: Path,
    checkpoint: Path | None = None,
    vlm: str | None = None,
    pretrained: Path | None = None,
    device: str | None,
) -> Stage:
    """A file of questions without pictures, or of running text, which the pretrained VLM reads beside it.

    `pretrained` is as of `questions`; running text takes none.
    """
    asked = f"--vlm={vlm}" if checkpoint is None else f"--policy.path={checkpoint}"
    command = ["aegis-vqa", asked, f"--benchmark=text:{file}", f"--output_dir={output_dir}", *_on(device)]
    if pretrained is not None:
        command.append(f"--pretrained_answers={pretrained}")
    running = file.suffix == RUNNING
    return Stage(
        name,
        f"reading {file.name}" if running else f"asking {file.name}",
        output_dir / "results.json",
        command,
        cost=costs.text(),
        read=measured.running_text if running else measured.text_answers,
    )


def anchor(name: str, out: Path, *, vlm: str, device: str | None, flags: Sequence[str]) -> Stage:
    """What the pretrained activations are like."""
    command = ["aegis-anchor", f"--vlm={vlm}", f"--out={out}", *_on(device), *flags]
    return Stage(f"anchor-{name}", f"anchor {name}", out, command, cost=costs.anchor())


def action_error(
    name: str, output: Path, *, checkpoint: Path, dataset: Path, frames: int, device: str | None
) -> Stage:
    """How far chunks are from held-out demonstrations."""
    command = ["aegis-action-error", f"--policy.path={checkpoint}", f"--dataset.root={dataset}"]
    command += [f"--frames={frames}", f"--output={output}", *_on(device)]
    return Stage(
        name,
        "action error",
        output,
        command,
        cost=costs.action_error(frames),
        read=measured.action_error,
    )


def swap(
    name: str,
    output: Path,
    *,
    checkpoint: Path,
    task: str,
    pairs: int,
    seed: int,
    device: str | None,
    tasks: int = 1,
    split: str = "test",
) -> Stage:
    """Does the arm go to the object that is named, in each of so many tasks?"""
    command = ["aegis-swap", f"--policy.path={checkpoint}", f"--task={task}", f"--split={split}"]
    command += [f"--pairs={pairs}", f"--seed={seed}", f"--output={output}", *_on(device)]
    return Stage(
        name,
        f"swapping instructions in {pairs} scenes",
        output,
        command,
        cost=costs.swap(pairs, tasks),
        read=measured.swaps,
    )


def acting(
    name: str,
    output: Path,
    *,
    checkpoint: Path,
    kinds: Sequence[str],
    scenes: int,
    seed: int,
    device: str | None,
) -> Stage:
    """Does the arm use what its VLM knows?"""
    command = ["aegis-act", f"--policy.path={checkpoint}", f"--kinds=[{','.join(kinds)}]"]
    command += [f"--scenes={scenes}", f"--seed={seed}", f"--output={output}", *_on(device)]
    return Stage(
        name,
        f"acting on questions in {scenes} scenes",
        output,
        command,
        cost=costs.acting(scenes, len(kinds)),
        read=measured.acted,
    )


def merging(name: str, output_dir: Path, *, checkpoint: Path, alpha: float) -> Stage:
    """A policy with its language weights led part of the way back."""
    command = ["aegis-merge", f"--policy.path={checkpoint}", f"--alpha={alpha}", f"--output_dir={output_dir}"]
    return Stage(name, f"merging at {alpha:g}", output_dir / "merged.json", command, cost=costs.merging())


def drift(
    name: str, output: Path, *, checkpoint: Path, samples: int, split: str, device: str | None
) -> Stage:
    """How far did the backbone's activations move?"""
    command = ["aegis-drift", f"--policy.path={checkpoint}", f"--split={split}", f"--samples={samples}"]
    command += [f"--output={output}", *_on(device)]
    return Stage(name, "activation drift", output, command, cost=costs.drift(), read=measured.drift)


def _on(device: str | None, flag: str = "--device") -> list[str]:
    return [f"{flag}={device}"] if device else []
