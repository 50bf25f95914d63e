"""The work of `aegis-ablate`: a plan of stages, carried out and summed up as figures."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

from lerobot.configs import PreTrainedConfig

from aegis_envs.tabletop.sim import CAMERAS
from aegis_envs.tabletop.tasks import parse_tasks
from aegis_eval.commands.ablate import AblateConfig
from aegis_eval.experiments import catalogue, costs
from aegis_eval.experiments.anchors import anchor_flags, anchor_jobs
from aegis_eval.experiments.cameras import check_cameras, inputs_flag, names_in
from aegis_eval.experiments.configurations import check_configurations
from aegis_eval.experiments.folder import claimed, plain
from aegis_eval.experiments.launchers import run_jobs
from aegis_eval.experiments.plan import Plan, alone
from aegis_eval.experiments.run import Run
from aegis_eval.experiments.stage import Job
from aegis_eval.experiments.variants import VARIANTS
from aegis_eval.questions.records import WHOLE
from aegis_eval.questions.texts import TextQuestions
from aegis_eval.results.frontier import TEXT, AblatedRun, Frontier
from aegis_eval.results.provenance import provenance
from aegis_policy.checkpoint.changes import check_changes
from aegis_policy.checkpoint.checks import CONFIG_FILE, check_checkpoint
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.finding import enforce
from aegis_policy.support.json_files import read_json, write_json
from aegis_policy.vqa.sources import expanded
from aegis_policy.vqa.texts import RUNNING, SOURCE, read_paragraphs, text_file

_DATA_SEEDS = {"val": 1_000_003, "test": 2_000_003}
"""Seeds of the held-out demonstrations, far from any of the training ones."""
_NOTHING_LOST = "stop_gradient"
"""The protection whose VLM is the pretrained one still: under `freeze` its projector or tower may learn."""
_TRAINING = (
    "tasks",
    "episodes",
    "data_seed",
    "scatter",
    "steps",
    "batch_size",
    "lr",
    "lr_backbone",
    "flow_samples",
    "probe_freq",
    "cameras",
    "policy",
    "vlm",
    "start",
    "anchor_vqa",
    "held_out",
    "samples",
    "frames",
)
"""Flags that everything in a folder has in common."""


def ablate(config: AblateConfig) -> Path:
    """Run what has not been run, write `ablation.json`, `ablation.md` and two figures, name them.

    Raises:
        AegisError: flags that cannot be, a folder with trainings of other flags, or a job that failed.
    """
    if config.redraw is not None:
        try:
            results = read_json(config.redraw)
            runs = [AblatedRun(**run) for run in results["runs"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AegisError(
                f"--redraw={config.redraw} cannot be read ({one_line(error)}): name an ablation.json of aegis-ablate."
            ) from error
        results["frontier"] = Frontier.of(runs).to_dict()
        return _write_page(results, config.output_dir)
    _check(config)
    setting = plain({name: getattr(config, name) for name in _TRAINING})
    variants = list(dict.fromkeys(["none", "stop_gradient", *config.variants]))
    plan = ablation_plan(config, variants, {**setting, "split": config.split})
    check_configurations(job for jobs in plan.jobs().values() for job in jobs)
    with claimed(config.output_dir, "setting.json", setting):
        started = time.monotonic()
        plan.carry_out(partial(_launch, config))
        names = [_name(variant, seed) for variant in variants for seed in range(config.seeds)]
        runs = [AblatedRun.of(plan.result(name)) for name in names]
        results = {
            "config": plain(asdict(config)),
            "variants": {name: list(VARIANTS[name].flags) for name in variants},
            "frontier": Frontier.of(runs).to_dict(),
            "runs": [asdict(run) for run in runs],
            "provenance": provenance(0, time.monotonic() - started),
        }
        write_json(config.output_dir / "ablation.json", results, indent=None)
        return _write_page(results, config.output_dir)


def _write_page(results: Mapping[str, Any], folder: Path) -> Path:
    from aegis_eval.pages.ablation import write_page  # brings matplotlib, which draws once there are results

    return write_page(results, folder)


def _check(config: AblateConfig) -> None:
    cli.require_at_least(
        config,
        seeds=1,
        episodes=1,
        data_seed=0,
        held_out=1,
        steps=1,
        batch_size=1,
        samples=1,
        frames=1,
        jobs=1,
        probe_freq=0,
    )
    if config.split not in _DATA_SEEDS:
        raise AegisError(f"--split={config.split} is unknown: choose {' or '.join(_DATA_SEEDS)}.")
    if config.data_seed in _DATA_SEEDS.values():
        raise AegisError(
            f"--data_seed={config.data_seed} is that of held-out demonstrations: choose another."
        )
    if not config.variants:
        raise AegisError(f"--variants=[] names none; there are: {', '.join(VARIANTS)}.")
    if unknown := [name for name in config.variants if name not in VARIANTS]:
        raise AegisError(f"--variants: {unknown[0]} is unknown; there are: {', '.join(VARIANTS)}.")
    _check_texts(config.texts)
    if config.start is not None:
        _check_start(config, config.start)
    parse_tasks(config.tasks, "--tasks")
    check_cameras(config.cameras)


def _check_start(config: AblateConfig, checkpoint: Path) -> None:
    """See that it is a whole policy of the VLM whose answers are compared, and that every variant can go on from it."""
    from aegis_policy.configuration_aegis import AegisConfig  # and with it LeRobot's policies

    enforce(check_checkpoint(checkpoint))
    own = read_json(checkpoint / CONFIG_FILE)
    if own.get("vlm") != config.vlm:
        raise AegisError(
            f"--start={checkpoint} is a policy of --vlm={own.get('vlm')}, not of {config.vlm}: name the same."
        )
    if own.get("protection") != _NOTHING_LOST:
        raise AegisError(
            f"--start={checkpoint} was trained with {own.get('protection')}, so its VLM may be another already: "
            f"name one that was trained with {_NOTHING_LOST}."
        )
    for variant in config.variants:
        flags = [*VARIANTS[variant].flags, *(f"--policy.{flag}" for flag in config.policy)]
        changed = PreTrainedConfig.from_pretrained(
            checkpoint, cli_overrides=[f"--{flag.removeprefix('--policy.')}" for flag in flags]
        )
        enforce(check_changes(checkpoint, cast(AegisConfig, changed), resumed=False))


def _check_texts(files: Sequence[str]) -> None:
    """Read all of them, as nobody wants to hear of a line after the trainings."""
    for file in files:
        path = text_file(f"{SOURCE}:{file}", "--texts: ")
        assert path is not None
        if path.suffix == RUNNING:
            read_paragraphs(path, 1)
        else:
            TextQuestions.of(path).drawn(None, WHOLE, 1, 0)
    names = [Path(file).stem for file in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise AegisError(f"--texts: several files are called {twice[0]}: give them different names.")


def _launch(config: AblateConfig, jobs: Sequence[Job], title: str) -> Mapping[str, AegisError]:
    return run_jobs(jobs, at_once=config.jobs, title=title)


def ablation_plan(config: AblateConfig, variants: Sequence[str], setting: Mapping[str, Any]) -> Plan:
    """The jobs of an ablation: demonstrations and the pretrained model's answers, anchors, trainings.

    Args:
        config: flags.
        variants: names in `VARIANTS`.
        setting: flags that the result files name.
    """
    root = config.output_dir
    runs = [_run(config, name, seed) for seed in range(config.seeds) for name in variants]
    anchors: Callable[[], list[Job]] = partial(
        anchor_jobs,
        root,
        variants,
        data=root / "data" / "train",
        cameras=config.cameras,
        device=config.device,
        vlm=config.vlm,
        vqa=config.anchor_vqa,
    )
    phases = {
        "recordings": lambda: [*_recordings(config), _pretrained(config), *_pretrained_texts(config)],
        "anchors": anchors,
        "trainings": lambda: [run.job for run in runs],
    }
    return Plan(root, setting, phases, lambda: runs)


def _recordings(config: AblateConfig) -> list[Job]:
    """Demonstrations to train on, and those held out."""
    held_out = "train" if config.split == "val" else "test"
    kinds = {
        "train": ("train", config.data_seed, config.episodes),
        config.split: (held_out, _DATA_SEEDS[config.split], config.held_out),
    }
    stages = [
        catalogue.recording(
            f"record-{name}",
            config.output_dir / "data" / name,
            split=split,
            task=config.tasks,
            episodes=episodes,
            seed=seed,
            flags=[f"--scatter={config.scatter}", "--num_workers=1"],
        )
        for name, (split, seed, episodes) in kinds.items()
    ]
    return [alone(stage, config.output_dir) for stage in stages]


def _pretrained(config: AblateConfig) -> Job:
    """Asks the pretrained model, whose images then lie in the cache before several runs want them at once."""
    name = f"pretrained-{config.split}"
    stage = catalogue.questions(
        name,
        config.output_dir / name,
        vlm=config.vlm,
        samples=config.samples,
        split=config.split,
        device=config.device,
    )
    return alone(stage, config.output_dir)


def _pretrained_texts(config: AblateConfig) -> list[Job]:
    """Asks the pretrained model the questions without pictures; running text it reads beside each trained one."""
    stages = [
        catalogue.text(folder.name, folder, file=_file(each), vlm=config.vlm, device=config.device)
        for each in config.texts
        if (folder := _answers_folder(config, each)) is not None
    ]
    return [alone(stage, config.output_dir) for stage in stages]


def _answers_folder(config: AblateConfig, text: str) -> Path | None:
    """What the pretrained model answers to a file of questions; None of running text."""
    file = _file(text)
    return None if file.suffix == RUNNING else config.output_dir / f"pretrained-{TEXT}{file.stem}"


def _file(text: str) -> Path:
    return Path(expanded(text))


def _name(variant: str, seed: int) -> str:
    return f"{variant.replace(' ', '_')}-{seed}"


def _run(config: AblateConfig, variant: str, seed: int) -> Run:
    root, name = config.output_dir, _name(variant, seed)
    folder = root / "runs" / name
    checkpoint = catalogue.last_checkpoint(folder / "training", config.steps)
    stages = [
        catalogue.training(
            f"{name}-training",
            folder / "training",
            dataset=root / "data" / "train",
            steps=config.steps,
            batch_size=config.batch_size,
            seed=seed,
            saves=4,
            last_only=True,
            start=config.start,
            device=config.device,
            flags=_learning(config, variant),
            cost=costs.training(
                variant, steps=config.steps, batch_size=config.batch_size, flow_samples=config.flow_samples
            ),
        ),
        catalogue.action_error(
            f"{name}-action-error",
            folder / f"action-error-{config.split}.json",
            checkpoint=checkpoint,
            dataset=root / "data" / config.split,
            frames=config.frames,
            device=config.device,
        ),
        catalogue.questions(
            f"{name}-vqa",
            folder / f"vqa-{config.split}",
            checkpoint=checkpoint,
            samples=config.samples,
            split=config.split,
            device=config.device,
        ),
        *(
            catalogue.text(
                f"{name}-{TEXT}{_file(each).stem}",
                folder / f"{TEXT}{_file(each).stem}",
                file=_file(each),
                checkpoint=checkpoint,
                pretrained=_answers_folder(config, each),
                device=config.device,
            )
            for each in config.texts
        ),
    ]
    return Run(name, variant, config.lr_backbone, seed, folder, root / "logs", stages)


def _learning(config: AblateConfig, variant: str) -> list[str]:
    """Flags of a training beside those that every one has."""
    cameras = names_in(config.cameras) if config.cameras is not None else []
    in_order = [name for name in CAMERAS if name in cameras]  # as they were recorded
    return [
        f"--policy.vlm={config.vlm}",
        *VARIANTS[variant].flags,
        *anchor_flags(config.output_dir, variant, config.vlm),
        *([inputs_flag(in_order)] if cameras else []),
        *(f"--policy.{flag}" for flag in config.policy),
        f"--policy.optimizer_lr={config.lr}",
        f"--policy.optimizer_lr_backbone={config.lr_backbone}",
        f"--policy.flow_samples={config.flow_samples}",
        *([f"--policy.vqa_probe_freq={config.probe_freq}"] if config.probe_freq else []),
    ]
