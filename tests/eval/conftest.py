"""Finished runs as the commands leave them on disk, small and quick, with real images and videos."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import imageio.v2 as imageio
import numpy as np
import pytest

from aegis_envs.tabletop.env import TabletopEnv
from aegis_envs.tabletop.expert import expert_action
from aegis_eval.answers.blind import BlindBaseline
from aegis_eval.answers.scoring import score_answers
from aegis_eval.doctor import machine
from aegis_eval.doctor.machine import Attempt
from aegis_eval.pages.report import write_report
from aegis_eval.questions.tabletop import TabletopSample, load_samples
from aegis_eval.results.baselines import Baseline
from aegis_eval.results.compared import ComparedRun, Questions
from aegis_eval.results.run import RunSummary
from aegis_eval.results.swap import SwapProbe
from aegis_policy.support.json_files import write_json
from aegis_policy.vqa.examples import exact_match

EPISODES = {"reach": 40, "pick": 30}
STEPS = 1600


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aegis-cache")


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Attempt]:
    """What code that the doctor tries comes to, without trying it: all works, but for what is put in here."""
    found = {machine.RENDER: Attempt(True, "500"), machine.GPU: Attempt(True, "[]")}
    found[machine.METAWORLD] = Attempt(True, "[null, null]")
    monkeypatch.setattr(machine, "attempt", lambda code, *_: found.get(code, Attempt(True, "")))
    return found


@pytest.fixture(scope="session")
def samples() -> list[TabletopSample]:
    return load_samples("tabletop", "test", 120)


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory, samples: list[TabletopSample]) -> SimpleNamespace:
    """`unprotected` and `aegis`: folders with `eval/`, `vqa/`, `swap.json` and `train.log`, as commands write them."""
    root = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    runs = SimpleNamespace(unprotected=root / "unprotected", aegis=root / "aegis")
    pretrained = _answers(samples, 0.96, rng)
    for folder, rate, kept, codec, swapped in (
        (runs.unprotected, 0.7, 0.75, "libx264", SwapProbe("reach", "test", 25, 41, 19)),
        (runs.aegis, 0.75, 0.99, "mpeg4", SwapProbe("reach", "test", 25, 46, 22)),
    ):
        _write_eval(folder / "eval", rate, codec, rng)
        _write_vqa(folder / "vqa", samples, pretrained, kept, rng)
        write_json(folder / "swap.json", {"tasks": {swapped.task: swapped.to_dict()}})
        (folder / "train.log").write_text(_training_log(drift=0.2 if kept > 0.9 else 1.0))
    return runs


@pytest.fixture(scope="session")
def run_summaries(finished_runs: SimpleNamespace) -> list[RunSummary]:
    return [
        RunSummary.read(
            name,
            eval_dir=folder / "eval",
            vqa_dir=folder / "vqa",
            training_log=folder / "train.log",
            swap=folder / "swap.json",
        )
        for name, folder in (("unprotected", finished_runs.unprotected), ("AEGIS", finished_runs.aegis))
    ]


@pytest.fixture(scope="session")
def report_page(run_summaries: list[RunSummary], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("report") / "report.html", run_summaries)


@pytest.fixture(scope="session")
def comparison_results() -> dict:
    """What `aegis-compare` writes to `comparison.json`: seven protections, two seeds, two learning rates."""
    protections = ("none", "freeze", "stop_gradient", "lora", "replay", "gaussian", "aegis")
    questions, episodes = 40, 30
    rng = np.random.default_rng(0)
    runs = [
        ComparedRun(
            name,
            lr,
            seed,
            rollouts={split: {"reach": _bits(rng, 0.7, episodes)} for split in ("test", "unseen")},
            answers={kind: _bits(rng, 0.9, questions) for kind in ("tabletop", "tabletop_robot")},
            swaps={"reach": {"pairs": 5, "followed": 8, "changed": 4}},
            drift=0.1,
            drift_per_layer=[0.1, 0.1],
            folder=f"{'freeze' if name == 'stop_gradient' else name}-lr{lr:g}-seed{seed}",
            curves={"loss": {"steps": [10, 20], "values": [1.0, 0.5 + 0.1 * seed]}},
            seconds={"training": 12.0},
        )
        for lr in (3e-4, 1e-4)
        for seed in range(2)
        for name in protections
    ]
    asked = Questions(
        ["shape", "count"] * (questions // 2), [i // 2 for i in range(questions)], "1" * questions
    )
    return {
        "config": {
            "lr_backbone": 3e-4,
            "seeds": 2,
            "steps": 20,
            "task": "reach",
            "eval_episodes": episodes,
            "samples": questions,
        },
        "baselines": [
            asdict(
                Baseline(
                    name,
                    {split: {"reach": [share, 0.0] * (episodes // 2)} for split in ("test", "unseen")},
                    {"reach": [share, 0.0] * 5},
                )
            )
            for name, share in (("nearest object", 1.0), ("any object", 0.5))
        ],
        "protections": {name: [f"--policy.protection={name}"] for name in protections},
        "expert": {split: {"reach": "1" * episodes} for split in ("test", "unseen")},
        "questions": {kind: asdict(asked) for kind in ("tabletop", "tabletop_robot")},
        "runs": [asdict(run) for run in runs],
        "tuned": dict.fromkeys(protections, 1e-4),
        "tuning": [{"protection": "aegis", "lr": lr, "success": 0.5, "retained": 0.9} for lr in (1e-4, 3e-4)],
        "provenance": {"command": "aegis-compare --seeds=2", "git_commit": "abc", "seed": 1000},
    }


def _bits(rng: np.random.Generator, rate: float, count: int) -> str:
    return "".join(str(int(bit)) for bit in rng.random(count) < rate)


def _write_eval(folder: Path, rate: float, codec: str, rng: np.random.Generator) -> None:
    per_task = []
    for task, episodes in EPISODES.items():
        successes = [True, False, *(bool(success) for success in rng.random(episodes - 2) < rate)]
        videos = folder / "videos" / f"{task}_0"
        videos.mkdir(parents=True)
        env = TabletopEnv(task, "test")
        for episode in range(2):
            env.reset(seed=episode)
            frames = [env.render()]
            for _ in range(10):
                assert env.episode is not None
                env.advance(expert_action(env.sim, env.episode))
                frames.append(env.render())
            imageio.mimwrite(videos / f"eval_episode_{episode}.mp4", frames, fps=10, codec=codec)
        env.close()
        # LeRobot notes the paths as seen from where it ran, which may be elsewhere.
        paths = [f"elsewhere/{folder.name}/videos/{task}_0/eval_episode_{index}.mp4" for index in range(2)]
        metrics = {"successes": successes, "video_paths": paths, "sum_rewards": [], "max_rewards": []}
        per_task.append({"task_group": task, "task_id": 0, "metrics": metrics})
    (folder / "eval_info.json").write_text(json.dumps({"per_task": per_task, "per_group": {}, "overall": {}}))


def _answers(samples: list[TabletopSample], accuracy: float, rng: np.random.Generator) -> list[str]:
    wrong = {"yes": "no", "no": "yes", "red": "orange", "1": "2", "cube": "sphere"}
    return [
        sample.answer if rng.random() < accuracy else wrong.get(sample.answer, "red") for sample in samples
    ]


def _write_vqa(
    folder: Path, samples: list[TabletopSample], pretrained: list[str], kept: float, rng: np.random.Generator
) -> None:
    lost = _answers(samples, kept, rng)
    given = [
        new if old == sample.answer else old
        for sample, old, new in zip(samples, pretrained, lost, strict=True)
    ]
    blind = BlindBaseline().fit((sample.question, sample.answer, sample.type) for sample in samples)
    results = score_answers(samples, given, blind, pretrained).to_dict()
    results |= {
        "benchmark": "tabletop",
        "provenance": {"command": "aegis-vqa --policy.path=run <b>", "seed": 0},
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    with (folder / "samples.jsonl").open("w") as lines:
        for sample, answer, before in zip(samples, given, pretrained, strict=True):
            record = {
                key: value for key, value in asdict(sample).items() if key not in ("image", "scene", "index")
            }
            record |= {"given": answer, "correct": exact_match(answer, sample.answer)}
            record |= {"pretrained": before, "pretrained_correct": exact_match(before, sample.answer)}
            lines.write(json.dumps(record) + "\n")


def _training_log(drift: float) -> str:
    """Lines as `lerobot-train` prints them, steps rounded from 1,000 on."""
    lines = ["INFO 2026-01-01 10:00:00 ot_train.py:300 Start offline training"]
    for step in range(100, STEPS + 1, 100):
        shown = f"{step}" if step < 1000 else f"{step / 1000:.0f}K"
        lines.append(
            f"INFO 2026-01-01 10:00:00 ot_train.py:349 step:{shown} smpl:{16 * step} ep:40 epch:0.5 "
            f"loss:{2 * 0.5 ** (step / 500) + 0.1:.3f} grdn:{1 + 100 / step:.3f} lr:1.0e-04 updt_s:0.2 "
            f"data_s:0.0 smp/s:80 anchor_distance:{4 + drift * step / 100:.3f} "
            f"conflict_fraction:{0.4 + 0.1 * np.sin(step):.3f} "
            f"energy_shed:{0.006 * (1 + np.cos(step)):.3f} unprojected_layers:0.000"
        )
        if step == 800:
            lines.append(
                "INFO 2026-01-01 10:00:00 ot_train.py:400 step:800 smpl:1 ep:1 epch:0.1 success:50.0"
            )
    return "\n".join(lines) + "\n"
