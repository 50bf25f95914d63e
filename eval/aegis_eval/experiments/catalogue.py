"""The stages that experiments are made of: recording, training, and everything that is measured of a checkpoint.

Each function names one command of this package or of LeRobot with its flags; what runs them is
`aegis_eval.experiments.stage`. `device` is `cuda` or `cpu`; without one each command chooses.
"""

from collections.abc import Sequence
from pathlib import Path

from aegis_eval.experiments.stage import Stage


def recording(
    name: str, root: Path, *, split: str, task: str, episodes: int, seed: int, flags: Sequence[str] = ()
) -> Stage:
    """Tabletop demonstrations in the LeRobotDataset `root`."""
    command = ["aegis-record", "--env.type=aegis_tabletop", f"--env.split={split}", f"--env.task={task}"]
    command += [f"--episodes={episodes}", f"--root={root}", f"--seed={seed}", *flags]
    return Stage(name, f"recording {episodes} demonstrations", root / "recording.json", command)


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
) -> Stage:
    """A training on a recording, whose pictures are read in its own process.

    Args:
        name: of the stage.
        output_dir: of `lerobot-train`.
        dataset: folder of the LeRobotDataset.
        steps, batch_size, seed: as `lerobot-train` has them.
        saves: how many checkpoints are kept, the last one included; an interrupted training goes on from one.
        flags: protection, learning rates and whatever else.
    """
    command = ["lerobot-train", "--policy.type=aegis", "--dataset.repo_id=local/demonstrations"]
    command += [f"--dataset.root={dataset}", f"--output_dir={output_dir}", f"--steps={steps}"]
    command += [f"--save_freq={max(1, steps // saves)}", f"--log_freq={max(1, steps // 40)}"]
    command += [f"--batch_size={batch_size}", f"--seed={seed}", "--num_workers=0"]
    command += [*_on(device, "--policy.device"), *flags]
    return Stage(name, f"training {steps} steps", last_file(last_checkpoint(output_dir, steps)), command)


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
    split: str,
    episodes: int,
    seed: int,
    device: str | None,
) -> Stage:
    """Closed-loop episodes of each task on the tabletop, with videos."""
    command = ["lerobot-eval", f"--policy.path={checkpoint}", "--env.type=aegis_tabletop"]
    command += [f"--env.task={task}", f"--env.split={split}", f"--eval.n_episodes={episodes}"]
    command += [f"--eval.batch_size={min(20, episodes)}", "--eval.use_async_envs=false"]
    command += [f"--output_dir={output_dir}", f"--seed={seed}", *_on(device, "--policy.device")]
    return Stage(name, f"rolling out {episodes} {split} scenes", output_dir / "eval_info.json", command)


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
    return Stage(name, f"asking {samples} questions", output_dir / "results.json", command)


def anchor(name: str, out: Path, *, vlm: str, device: str | None, flags: Sequence[str]) -> Stage:
    """What the pretrained activations are like."""
    command = ["aegis-anchor", f"--vlm={vlm}", f"--out={out}", *_on(device), *flags]
    return Stage(f"anchor-{name}", f"anchor {name}", out, command)


def action_error(
    name: str, output: Path, *, checkpoint: Path, dataset: Path, frames: int, device: str | None
) -> Stage:
    """How far chunks are from held-out demonstrations."""
    command = ["aegis-action-error", f"--policy.path={checkpoint}", f"--dataset.root={dataset}"]
    command += [f"--frames={frames}", f"--output={output}", *_on(device)]
    return Stage(name, "action error", output, command)


def swap(
    name: str,
    output: Path,
    *,
    checkpoint: Path,
    task: str,
    split: str,
    pairs: int,
    seed: int,
    device: str | None,
) -> Stage:
    """Does the arm go to the object that is named?"""
    command = ["aegis-swap", f"--policy.path={checkpoint}", f"--task={task}", f"--split={split}"]
    command += [f"--pairs={pairs}", f"--seed={seed}", f"--output={output}", *_on(device)]
    return Stage(name, f"swapping instructions in {pairs} scenes", output, command)


def drift(
    name: str, output: Path, *, checkpoint: Path, samples: int, split: str, device: str | None
) -> Stage:
    """How far did the backbone's activations move?"""
    command = ["aegis-drift", f"--policy.path={checkpoint}", f"--split={split}", f"--samples={samples}"]
    return Stage(name, "activation drift", output, [*command, f"--output={output}", *_on(device)])


def _on(device: str | None, flag: str = "--device") -> list[str]:
    return [f"{flag}={device}"] if device else []
