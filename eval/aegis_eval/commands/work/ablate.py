"""The work of `aegis-ablate`: a plan of stages, carried out and summed up as figures."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from aegis_envs.tabletop.sim import CAMERAS
from aegis_envs.tabletop.tasks import parse_tasks
from aegis_eval.commands.ablate import AblateConfig
from aegis_eval.experiments import catalogue, costs, texts
from aegis_eval.experiments.anchors import anchor_flags, anchor_jobs
from aegis_eval.experiments.cameras import check_cameras, inputs_flag, names_in
from aegis_eval.experiments.configurations import check_configurations
from aegis_eval.experiments.folder import claimed, plain
from aegis_eval.experiments.launchers import run_jobs
from aegis_eval.experiments.plan import Plan, alone
from aegis_eval.experiments.run import Run
from aegis_eval.experiments.stage import Job, Stage
from aegis_eval.experiments.start import check_start
from aegis_eval.experiments.texts import check_texts
from aegis_eval.experiments.variants import VARIANTS
from aegis_eval.questions.tabletop import TABLETOP
from aegis_eval.results.frontier import AblatedRun, Frontier
from aegis_eval.results.provenance import provenance
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.json_files import read_json, write_json

_BENCHMARK = "tabletop"
_DATA_SEEDS = {"val": 1_000_003, "test": 2_000_003}
"""Seeds of the held-out demonstrations, far from any of the training ones."""
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
    check_texts(config.texts)
    if others := [name for name in config.benchmarks if name not in TABLETOP or name == _BENCHMARK]:
        raise AegisError(
            f"--benchmarks: {others[0]} is none that can be added: choose of "
            f"{', '.join(name for name in TABLETOP if name != _BENCHMARK)}."
        )
    if config.start is not None:
        check_start(config.start, vlm=config.vlm, variants=config.variants, policy=config.policy)
    parse_tasks(config.tasks, "--tasks")
    check_cameras(config.cameras)


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
        "recordings": lambda: [
            *_recordings(config),
            *_pretrained(config),
            *texts.pretrained_jobs(root, config.texts, vlm=config.vlm, device=config.device),
        ],
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


def _pretrained(config: AblateConfig) -> list[Job]:
    """Asks the pretrained model, whose images then lie in the cache before several runs want them at once."""
    return [
        alone(_asking(config, folder.name, folder, benchmark, vlm=config.vlm), config.output_dir)
        for benchmark in (_BENCHMARK, *config.benchmarks)
        for folder in [_answers_folder(config, benchmark)]
    ]


def _answers_folder(config: AblateConfig, benchmark: str) -> Path:
    """What the pretrained model answers."""
    name = config.split if benchmark == _BENCHMARK else f"{benchmark}-{config.split}"
    return config.output_dir / f"pretrained-{name}"


def _asking(config: AblateConfig, name: str, folder: Path, benchmark: str, **asked: Any) -> Stage:
    """Asks a checkpoint or a VLM."""
    return catalogue.questions(
        name,
        folder,
        benchmark=benchmark,
        samples=config.samples,
        split=config.split,
        device=config.device,
        **asked,
    )


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
        *(
            _asking(
                config,
                f"{name}-vqa{suffix}",
                folder / f"vqa{suffix}-{config.split}",
                benchmark,
                checkpoint=checkpoint,
                pretrained=_answers_folder(config, benchmark),
            )
            for benchmark in (_BENCHMARK, *config.benchmarks)
            for suffix in ["" if benchmark == _BENCHMARK else f"-{benchmark}"]
        ),
        *texts.stages(
            root, folder, config.texts, checkpoint=checkpoint, device=config.device, prefix=f"{name}-"
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
