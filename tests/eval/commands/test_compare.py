"""`aegis-compare`: its plan, and (slow) the whole of it, killed on the way, and on a Ray cluster."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from running_processes import wait_for, writers_under

from aegis_envs.tabletop.env import TabletopEnv
from aegis_eval.commands.compare import CompareConfig
from aegis_eval.commands.work import compare as command
from aegis_eval.commands.work.compare import compare
from aegis_eval.experiments.comparison import ROLLOUT_SEED, ComparisonPlan, RunKey
from aegis_eval.experiments.stage import Job
from aegis_policy.support.errors import AegisError


def make_config(folder: Path, **options) -> CompareConfig:
    return CompareConfig(
        output_dir=folder, **{"protections": "aegis,freeze", "seeds": 2, "steps": 10, **options}
    )


def make_plan(folder: Path, **options) -> ComparisonPlan:
    return ComparisonPlan(make_config(folder, **options), {})


def jobs_of(plan: ComparisonPlan, phase: str = "runs") -> list[Job]:
    return plan.jobs()[phase]


def finish(plan: ComparisonPlan, key: RunKey, success: float, accuracy: float) -> None:
    """Leave what the validation of a run would."""
    folder = plan.folder(key)
    outcomes = [index < 10 * success for index in range(10)]
    (folder / "rollouts-val").mkdir(parents=True)
    (folder / "vqa-tabletop-val").mkdir()
    info = {"per_task": [{"task_group": "reach", "metrics": {"successes": outcomes}}]}
    (folder / "rollouts-val" / "eval_info.json").write_text(json.dumps(info))
    results = {"accuracy": accuracy, "per_type": {}, "pretrained": {"accuracy": 0.8}}
    (folder / "vqa-tabletop-val" / "results.json").write_text(json.dumps(results))
    texts = {
        "id": "tabletop/val/0/3/1",
        "type": "color",
        "question": "which?",
        "answer": "red",
        "given": "red",
    }
    answer = {**texts, "correct": True, "pretrained_correct": True}
    (folder / "vqa-tabletop-val" / "samples.jsonl").write_text(json.dumps(answer) + "\n")


def test_every_protection_and_seed_is_a_job_that_measures_both_skills(tmp_path: Path) -> None:
    jobs = jobs_of(make_plan(tmp_path))
    assert [job.name for job in jobs] == [
        f"{name}-lr0.0003-seed{seed}" for seed in (0, 1) for name in ("none", "aegis", "freeze")
    ]
    for job in jobs:
        commands = [stage.command[0] for stage in job.stages]
        assert commands == [
            "lerobot-train",
            "lerobot-eval",
            "lerobot-eval",
            "aegis-vqa",
            "aegis-vqa",
            "aegis-swap",
            "aegis-act",
            "aegis-drift",
        ]
        starts = {flag for stage in job.stages for flag in stage.command if flag.startswith("--seed=")}
        assert starts == {f"--seed={job.name[-1]}", "--seed=1000", "--seed=0"}, (
            "all meet the same initial states"
        )
    assert len({stage.result for job in jobs for stage in job.stages}) == 8 * len(jobs)


@pytest.mark.parametrize("options", [{"act_scenes": 0}, {"task": "push,pick"}, {"cameras": "wrist"}])
def test_an_arm_is_not_asked_what_it_cannot_do_or_see(tmp_path: Path, options: dict[str, Any]) -> None:
    (job, *_) = jobs_of(make_plan(tmp_path, **options))
    assert not [stage for stage in job.stages if stage.command[0] == "aegis-act"]


def test_each_protection_gets_the_learning_rate_that_was_best_on_validation_data(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, lr_grid=[1e-4, 3e-4])
    tuning = jobs_of(plan, "choosing learning rates")
    assert len(tuning) == 4, "a frozen backbone has no learning rate"
    assert all("--env.split=train" in stage.command for job in tuning for stage in job.stages[1:2])
    scores = {("none", 1e-4): (0.5, 0.8), ("none", 3e-4): (0.9, 0.4), ("aegis", 1e-4): (0.5, 0.8)}
    for (name, lr), score in scores.items():
        finish(plan, RunKey(name, lr, 0), *score)
    assert plan.chosen_lrs() == {} and {key.lr for key in plan.reported_keys()} == {3e-4}, (
        "not while one is missing"
    )
    finish(plan, RunKey("aegis", 3e-4, 0), 0.9, 0.76)
    assert plan.chosen_lrs() == {"none": 1e-4, "aegis": 3e-4, "freeze": 3e-4}
    assert {job.name for job in jobs_of(plan)} > {"none-lr0.0001-seed1", "aegis-lr0.0003-seed1"}


def test_each_protection_is_reported_as_the_trial_that_was_best(tmp_path: Path) -> None:
    (tmp_path / "trials.json").write_text(
        json.dumps(
            {
                "none": [{"lr": 1e-4}, {"lr": 3e-4}],
                "aegis": [{"variant": "subspace 0.05", "lr": 1e-4}, {"variant": "subspace 0.1", "lr": 3e-4}],
                "stop_gradient": [{}],
            }
        )
    )
    plan = make_plan(tmp_path / "out", trials=tmp_path / "trials.json", seeds=2)
    assert [job.name for job in jobs_of(plan, "choosing learning rates")] == [
        "none-lr0.0001-seed0",
        "none-lr0.0003-seed0",
        "subspace_0.05-lr0.0001-seed0",
        "subspace_0.1-lr0.0003-seed0",
    ]
    assert "runs" not in plan.jobs(), "nothing is measured on test data before all is chosen"
    scores = {
        ("none", 1e-4): 0.6,
        ("none", 3e-4): 0.5,
        ("subspace 0.05", 1e-4): 0.4,
        ("subspace 0.1", 3e-4): 0.7,
    }
    for (variant, lr), success in scores.items():
        finish(plan, RunKey(variant, lr, 0), success, 0.8)
    assert plan.chosen_lrs() == {"none": 1e-4, "subspace 0.1": 3e-4, "stop_gradient": 3e-4}
    assert [job.name for job in jobs_of(plan)] == [
        f"{name}-seed{seed}"
        for seed in (0, 1)
        for name in ("none-lr0.0001", "subspace_0.1-lr0.0003", "stop_gradient-lr0.0003")
    ]


def test_a_vlm_of_ones_own_is_asked_trained_and_anchored(tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text(json.dumps({"question": "why", "answer": "so"}))
    plan = make_plan(
        tmp_path / "out", protections="aegis", vlm="models/mine", texts=[str(tmp_path / "facts.jsonl")]
    )
    asked = [stage.command for job in jobs_of(plan, "preparations") for stage in job.stages]
    assert all("--vlm=models/mine" in command for command in asked if command[0] == "aegis-vqa")
    assert f"--benchmark=text:{tmp_path / 'facts.jsonl'}" in asked[-1]
    (anchor,) = jobs_of(plan, "anchors")
    assert "--vlm=models/mine" in anchor.stages[0].command
    job = jobs_of(plan)[1]
    training, *_, texts, _ = job.stages
    assert "--policy.vlm=models/mine" in training.command
    assert f"--policy.anchor_path={anchor.stages[0].result}" in training.command
    assert texts.name == "text-facts" and any("pretrained-text-facts" in flag for flag in texts.command)


def test_a_training_is_followed_through_its_checkpoints_and_back_by_merging(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, protections="aegis,freeze", curve_seeds=1, alphas=[0.5])
    none, _, freeze, *later = jobs_of(plan)
    names = [stage.name for stage in none.stages if "step" in stage.name or "alpha" in stage.name]
    on_the_way = [f"{what}-step{step}" for step in (2, 4, 6, 8) for what in ("rollouts", "vqa")]
    assert names == [*on_the_way, "merging-alpha0.5", "rollouts-alpha0.5", "vqa-alpha0.5"]
    merging, rollouts, asked = (stage for stage in none.stages if "alpha" in stage.name)
    merged = f"--policy.path={merging.result.parent}"
    assert merged in rollouts.command and merged in asked.command and asked.spare
    assert [stage.name for stage in freeze.stages if "alpha" in stage.name] == [], "nothing to lead back"
    assert not [stage for job in later for stage in job.stages if "step" in stage.name]


def test_trainings_begin_from_the_policy_that_is_named(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, start=tmp_path / "policy")
    assert all(f"--policy.path={tmp_path / 'policy'}" in job.stages[0].command for job in jobs_of(plan))


def test_protections_that_are_the_same_training_are_trained_once(tmp_path: Path) -> None:
    keys = [RunKey(name, 3e-4, 0) for name in ("freeze", "stop_gradient")]
    plan = make_plan(tmp_path, protections="freeze,stop_gradient", seeds=1)
    assert [job.name for job in jobs_of(plan)] == ["none-lr0.0003-seed0", "freeze-lr0.0003-seed0"]
    assert plan.folder(keys[0]) == plan.folder(keys[1]), "and both are read from it"
    alone = make_plan(tmp_path, protections="stop_gradient", seeds=1)
    assert [job.name for job in jobs_of(alone)] == ["none-lr0.0003-seed0", "stop_gradient-lr0.0003-seed0"]
    alone.folder(keys[1]).mkdir(parents=True)
    assert plan.folder(keys[0]) == alone.folder(keys[1]), "nor again, when the other one is added"


def test_they_are_not_the_same_training_where_the_projector_learns(tmp_path: Path) -> None:
    for value, runs in (("True", 3), ("false", 2)):
        flags = {"seeds": 1, "policy": [f"train_projector={value}"]}
        plan = make_plan(tmp_path, protections="freeze,stop_gradient", **flags)
        assert len(jobs_of(plan)) == runs


def test_cameras_reach_the_policy_and_its_anchor(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, protections="gaussian of robot frames", cameras="wrist", seeds=1)
    flags = [flag for job in jobs_of(plan) for flag in job.stages[0].command]
    (inputs, _) = (json.loads(flag.partition("=")[2]) for flag in flags if "input_features" in flag)
    assert {key: value["shape"] for key, value in inputs.items()} == {
        "observation.images.wrist": [3, 96, 96],
        "observation.state": [8],
    }
    (anchor,) = jobs_of(plan, "anchors")
    assert "--cameras=wrist" in anchor.stages[0].command


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(make_config(tmp_path / "new", dry_run=True)) is None
    text = capsys.readouterr().out
    assert "runs: 6 jobs, 48 of 48 stages to run" in text and re.search(r"about \d+ minutes", text)
    assert not (tmp_path / "new").exists()


def test_result_files_name_the_dataset_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "meta").mkdir(parents=True)
    (tmp_path / "data" / "meta" / "info.json").write_text('{"features": {}}')
    monkeypatch.chdir(tmp_path)
    named: list[str] = []

    class Noting(ComparisonPlan):
        def __init__(self, settings, setting) -> None:
            named.append(setting["dataset"])
            super().__init__(settings, setting)

    monkeypatch.setattr(command, "ComparisonPlan", Noting)
    compare(make_config(tmp_path / "new", dataset=Path("data"), dry_run=True))
    assert named == ["data"]


def test_the_time_left_is_estimated_from_what_has_finished(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, steps=10_000)
    before = _hours(plan)
    first = jobs_of(plan)[0]
    training = first.stages[0]
    training.result.parent.mkdir(parents=True)
    training.result.write_text("{}")
    first.logs.mkdir(parents=True)
    (first.logs / "training.json").write_text(json.dumps({"seconds": 4 * training.cost}))
    assert 3 * before < _hours(plan) < 4 * before


def _hours(plan: ComparisonPlan) -> float:
    return float(re.findall(r"about ([\d.]+) hours", plan.describe(1))[0])


def test_a_quick_comparison_keeps_the_flags_that_were_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CompareConfig(
        tmp_path / "new", protections="none,lora", seeds=1, steps=7, quick=True, dry_run=True
    )
    compare(config)
    assert (config.protections, config.seeds, config.steps, config.batch_size) == ("none,lora", 1, 7, 2)
    text = capsys.readouterr().out
    assert "lora-lr0.0003-seed0" in text and "seed1" not in text
    assert re.search(r"about [1-9]\d? minutes with 1 at once", text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"protections": "none,magic"}, "--protections: magic is unknown; there are: none,"),
        ({"launcher": "slurm"}, "--launcher=slurm is unknown: choose local or ray"),
        ({"lr_grid": [1e-4]}, "must hold --lr_backbone=0.0003"),
        ({"lr_backbone": 0.0}, "must be positive"),
        ({"trials": Path("trials.json"), "lr_grid": [3e-4]}, "--trials has the learning rates of every"),
        ({"trials": Path("/nowhere.json")}, "--trials=/nowhere.json cannot be read"),
        ({"start": Path("/nowhere")}, "/nowhere"),
        ({"alphas": [0.5, 1.0]}, "--alphas has 1.0: each must be at least 0 and below 1"),
        ({"texts": ["/nowhere.txt"]}, "--texts: .*/nowhere.txt"),
        ({"task": "juggle"}, "--task=juggle"),
        ({"policy": ["vlm=mine"]}, "--policy=vlm=mine is for the comparison to set"),
        ({"cameras": "front,top"}, "--cameras: 'top' is unknown; the tabletop has front and wrist"),
        ({"cameras": "front,"}, "--cameras: '' is unknown"),
        (
            {"protections": "freeze,stop_gradient", "policy": ["train_projector=true"]},
            "--policy=train_projector=true cannot be under stop_gradient",
        ),
        ({"device": "tpu"}, r"^--device=tpu cannot be \(Unknown device tpu\."),
        ({"flow_samples": 0}, "^--flow_samples=0 must be between"),
        ({"policy": ["nope=3"]}, r"^--policy\.nope=3 gives no field of AegisConfig a value"),
        ({"policy": ["nope=3"], "dry_run": True}, r"^--policy\.nope=3 gives no field"),
        ({"seeds": 0}, "--seeds=0 must be at least 1"),
        ({"dataset": Path("/nowhere")}, "--dataset=/nowhere holds no LeRobotDataset"),
        ({"dataset": "of one camera", "cameras": "wrist"}, "has no camera 'wrist'; it has front"),
    ],
)
def test_flags_that_cannot_be_are_named(tmp_path: Path, options, sentence) -> None:
    if options.get("dataset") == "of one camera":
        meta = tmp_path / "data" / "meta"
        meta.mkdir(parents=True)
        features = {"observation.images.front": {"shape": [64, 64, 3]}, "observation.state": {"shape": [8]}}
        (meta / "info.json").write_text(json.dumps({"features": features}))
        options = {**options, "dataset": meta.parent}
    with pytest.raises(AegisError, match=sentence):
        compare(make_config(tmp_path / "new", **options))
    assert not (tmp_path / "new").exists()


def _command(folder: Path, *flags: str) -> list[str]:
    program = Path(sys.executable).with_name("aegis-compare")
    return [str(program), "--quick=true", f"--output_dir={folder}", "--jobs=2", *flags]


def _raw(folder: Path) -> list[dict]:
    """What was counted, without the times it took; drift, whose last digits may differ, is in the table."""
    runs = json.loads((folder / "comparison.json").read_text())["runs"]
    left = ("seconds", "curves", "drift", "drift_per_layer")
    return [{key: value for key, value in run.items() if key not in left} for run in runs]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that was killed in the middle of a job and given again."""
    folder = tmp_path_factory.mktemp("compare") / "local"
    first = subprocess.Popen(_command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    early = folder / "runs" / "none-lr0.0003-seed0" / "rollouts-test" / "eval_info.json"
    while not early.exists():
        assert first.poll() is None, "it ended before it could be killed"
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_for(lambda: not writers_under(folder))
    before = early.stat().st_mtime_ns
    done = subprocess.run(_command(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert early.stat().st_mtime_ns == before, "what was finished is not repeated"
    return folder


@pytest.mark.slow
def test_a_comparison_that_was_killed_ends_with_everything(compared: Path) -> None:
    runs = _raw(compared)
    assert [(run["protection"], run["seed"]) for run in runs] == [
        ("none", 0),
        ("aegis", 0),
        ("none", 1),
        ("aegis", 1),
    ]
    manifest = json.loads((compared / "manifest.json").read_text())
    assert all(job["done"] for job in manifest)
    for run in (compared / "runs").iterdir():
        assert (compared / "results" / f"{run.name}.json").is_file()
        assert {path.name for path in run.iterdir()} >= {"logs", "metrics.jsonl", "swap.json", "drift.json"}
        assert (
            list((run / "rollouts-unseen").rglob("*.mp4")) and (run / "vqa-tabletop/samples.jsonl").exists()
        )
    page = (compared / "report.html").read_text()
    with closing(TabletopEnv("reach", "test")) as env:
        told = [env.reset(seed=ROLLOUT_SEED + state)[1]["instruction"] for state in range(2)]
    assert "<video" in page and all(f": “{instruction}”</h3>" in page for instruction in told)


@pytest.mark.slow
def test_two_ray_workers_give_the_same_table_and_a_killed_one_costs_its_job(
    compared: Path, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        folder = tmp_path / "ray"
        folder.mkdir()
        command = [*_command(folder / "out"), "--launcher=ray"]
        running = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster.address})
        early = folder / "out" / "runs" / "none-lr0.0003-seed0" / "logs" / "training.log"
        while not early.exists():
            assert running.poll() is None
            time.sleep(0.2)
        time.sleep(3)  # before its first checkpoint: a training that goes on from one draws other noise
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.add_node(num_cpus=1)
        assert running.wait(timeout=1200) == 0
        assert _raw(folder / "out") == _raw(compared)
        tables = [(where / "comparison.md").read_text() for where in (folder / "out", compared)]
        assert tables[0] == tables[1]
    finally:
        cluster.shutdown()
        assert ray is not None
        shutil.rmtree(tmp_path, ignore_errors=True)
