"""A plan: phases in order, a result file of every run, records that say which code made what."""

import json
import os
import re
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from aegis_eval.commands.ablate import AblateConfig
from aegis_eval.commands.work.ablate import ablation_plan
from aegis_eval.experiments.folder import claimed
from aegis_eval.experiments.launchers import run_in_turn, run_jobs, run_side_by_side
from aegis_eval.experiments.plan import Plan, alone
from aegis_eval.experiments.run import Run
from aegis_eval.experiments.stage import Job, Processes, Stage, run_stage
from aegis_eval.results.measured import action_error, curves, drift
from aegis_eval.results.provenance import surroundings
from aegis_eval.results.run_file import RunFile
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json

_LOGGED = "print('step:1 loss:2.0'); print('step:2 loss:1.5'); "


def stage(root: Path, name: str, code: str = "out.write_text('[1, 2]')", **more) -> Stage:
    """Python code that finds its result's path in `out`, whose JSON is what was found."""
    out = root / f"{name}.out"
    program = f"from pathlib import Path; out = Path({str(out)!r}); {code}"
    return Stage(
        name,
        name,
        out,
        [Path(sys.executable).name, "-c", program],
        **{"cost": 2.0, "read": read_json, **more},
    )


def training(root: Path, code: str = _LOGGED + "out.touch()") -> Stage:
    return stage(root, "none-training", code, read=curves, metrics=root / "metrics.jsonl")


def make_run(root: Path, *stages: Stage) -> Run:
    return Run("none", "none", 1e-3, 0, root / "none", root / "logs", stages)


def make_plan(root: Path, run: Run, **phases) -> Plan:
    return Plan(root, {"steps": 2}, phases or {"runs": lambda: [run.job]}, lambda: [run])


launch = partial(run_jobs, at_once=1)


def do(plan: Plan) -> None:
    plan.carry_out(lambda jobs, title: launch(jobs, title=title))


def test_every_run_leaves_one_file_with_what_its_stages_found_and_how(tmp_path: Path) -> None:
    run = make_run(tmp_path, training(tmp_path), stage(tmp_path, "none-vqa"))
    do(make_plan(tmp_path, run))
    (path,) = (tmp_path / "results").iterdir()
    found = RunFile.read(path)
    assert (path.name, found.variant, found.lr, found.seed) == ("none.json", "none", 1e-3, 0)
    assert found.setting == {"steps": 2} and found.flags == ["--policy.protection=none"]
    assert found.measured == {
        "training": {"loss": {"steps": [1, 2], "values": [2.0, 1.5]}},
        "vqa": [1, 2],
    }
    for record in found.stages.values():
        assert record.items() >= surroundings().items() and record["seconds"] > 0
    assert str(tmp_path) not in path.read_text().replace(f"Path({str(tmp_path)!r}", ""), (
        "no path of this machine"
    )
    assert all(job["done"] for job in read_json(tmp_path / "manifest.json"))


def test_a_result_file_names_no_folders_above_the_one_it_was_made_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "experiment"
    root.mkdir()
    one = stage(root, "none-vqa")
    one = replace(one, command=[*one.command, f"--output_dir={root}/vqa", f"--dataset.root={tmp_path}/data"])
    run = make_run(root, one)
    do(make_plan(root, run))
    assert run.results(root, {}).stages["vqa"]["command"][-2:] == ["--output_dir=vqa", "--dataset.root=data"]


def test_a_phase_is_planned_when_the_one_before_is_done(tmp_path: Path) -> None:
    first, second = (
        stage(tmp_path, "first"),
        stage(tmp_path, "second", "assert out.with_name('first.out').exists()"),
    )
    plan = make_plan(
        tmp_path,
        make_run(tmp_path),
        early=lambda: [alone(first, tmp_path)],
        late=lambda: [alone(replace(second, result=first.result), tmp_path)] if first.result.exists() else [],
    )
    assert list(plan.jobs()) == ["early"]
    do(plan)
    assert list(plan.jobs()) == ["early", "late"]


def test_what_finished_before_a_failure_has_its_file(tmp_path: Path) -> None:
    broken = stage(tmp_path, "none-vqa", "raise SystemExit('out of memory')")
    run = make_run(tmp_path, training(tmp_path), broken, stage(tmp_path, "none-swap"))
    with pytest.raises(
        AegisError, match=r"1 of 1 runs failed, the first is none: .*out of memory.* same command"
    ):
        do(make_plan(tmp_path, run))
    assert list(RunFile.read(tmp_path / "results" / "none.json").measured) == ["training"]
    assert [job["done"] for job in read_json(tmp_path / "manifest.json")] == [False]


@pytest.mark.parametrize("read", [drift, action_error])
def test_a_result_that_cannot_be_read_is_named(tmp_path: Path, read) -> None:
    broken = stage(tmp_path, "none-measured", "out.write_text('{}')", read=read)
    run_stage(broken, tmp_path)
    with pytest.raises(AegisError, match=r"is not what python\S* writes"):
        make_run(tmp_path, broken).results(tmp_path, {})


def test_a_log_is_parsed_once_when_the_training_ends(tmp_path: Path) -> None:
    run = make_run(tmp_path, training(tmp_path))
    run_stage(run.stages[0], run.logs)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n'
    (tmp_path / "logs" / "none-training.log").unlink()
    assert run.results(tmp_path, {}).measured["training"]["loss"]["values"] == [2.0, 1.5]


def test_folders_of_earlier_versions_have_only_the_log_and_that_is_enough(tmp_path: Path) -> None:
    run = make_run(tmp_path, training(tmp_path))
    do(make_plan(tmp_path, run))
    (tmp_path / "metrics.jsonl").unlink()
    record = tmp_path / "logs" / "none-training.json"
    record.write_text(json.dumps({"command": ["lerobot-train"], "seconds": 3.0, "host": "a"}))
    found = run.results(tmp_path, {})
    assert found.measured["training"]["loss"]["values"] == [2.0, 1.5] and found.seconds == {"training": 3.0}


def test_a_training_that_begins_anew_leaves_no_figures_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    failing = training(tmp_path, "raise SystemExit(1)")
    with pytest.raises(AegisError, match="ended with status 1"):
        run_stage(failing, tmp_path / "logs")
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("ends", ["out.write_text('ok')", "raise SystemExit(1)"])
def test_what_a_stage_can_spare_goes_once_it_is_done(ends: str, tmp_path: Path) -> None:
    folder, file = tmp_path / "000100", tmp_path / "optimizer_state.safetensors"
    folder.mkdir()
    (folder / "weights").touch()
    file.touch()
    never = tmp_path / "never"
    it = replace(stage(tmp_path, "it", ends), spare=(folder, file, never))
    with nullcontext() if "ok" in ends else pytest.raises(AegisError):
        run_stage(it, tmp_path / "logs")
    assert folder.exists() == file.exists() == (not it.done)


def test_of_an_ablations_training_the_last_checkpoint_stays(tmp_path: Path) -> None:
    plan = ablation_plan(AblateConfig(output_dir=tmp_path, seeds=1, steps=400), ["none"], {})
    (train,) = [job.stages[0] for job in plan.jobs()["trainings"]]
    checkpoints = tmp_path / "runs" / "none-0" / "training" / "checkpoints"
    earlier = [checkpoints / f"000{step}" for step in (100, 200, 300)]
    state = checkpoints / "000400" / "training_state"
    assert train.spare == (*earlier, state / "optimizer_state.safetensors")
    assert train.result == state / "scheduler_state.json"


def test_a_stage_that_runs_out_of_time_is_ended_and_done(tmp_path: Path) -> None:
    endless = stage(
        tmp_path, "endless", _LOGGED.replace(")", ", flush=True)") + "import time; time.sleep(600)", limit=3.0
    )
    endless = replace(endless, result=tmp_path / "endless.json", metrics=tmp_path / "metrics.jsonl")
    started = time.monotonic()
    assert run_stage(endless, tmp_path, Processes(forked=True)) < 30 and time.monotonic() - started < 30
    assert read_json(endless.result)["out_of_time"] is True
    assert curves(tmp_path / "metrics.jsonl")["loss"]["steps"] == [1, 2], "its figures are kept"
    in_time = replace(stage(tmp_path, "short", limit=100.0), result=tmp_path / "short.json")
    run_stage(in_time, tmp_path)
    assert "out_of_time" not in read_json(in_time.result)


def test_stages_in_turn_are_told_with_their_commands_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, stage(tmp_path, "one"), stage(tmp_path, "two"))
    make_plan(tmp_path, run).carry_out(run_in_turn)
    told = capsys.readouterr().out
    assert "[1/2] one\n    python" in told and f"log: {tmp_path / 'logs' / 'two.log'}" in told
    make_plan(tmp_path, run).carry_out(run_in_turn)
    assert capsys.readouterr().out == "[1/2] one: done before\n[2/2] two: done before\n"


def test_jobs_side_by_side_wait_for_each_other_and_share_the_cores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    meet = (
        "import os, time; out.write_text(os.environ['OMP_NUM_THREADS'])\n"
        "while not out.with_name('{}.out').exists(): time.sleep(0.01)"
    )
    here, there = stage(tmp_path, "one", meet.format("two")), stage(tmp_path, "two", meet.format("one"))
    jobs = [Job(each.name, [each], tmp_path / "logs") for each in (here, there)]
    assert run_side_by_side(jobs) == {}
    assert here.result.read_text() == there.result.read_text() == "3", "threads of each"
    told = capsys.readouterr().out
    assert "[1/2] one\n    python" in told and re.search(r"^\[2/2\] two: \d+ s$", told, re.MULTILINE)
    assert run_side_by_side(jobs) == {}
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "[1/2] one: done before",
        "[2/2] two: done before",
    ]


def test_of_jobs_side_by_side_one_that_fails_leaves_the_others(tmp_path: Path) -> None:
    jobs = [
        Job(each.name, [each], tmp_path / "logs")
        for each in (stage(tmp_path, "bad", "1 / 0"), stage(tmp_path, "good"))
    ]
    failed = run_side_by_side(jobs)
    assert failed.keys() == {"bad"} and "bad.log" in str(failed["bad"])
    assert jobs[1].done


def test_several_processes_go_on_with_a_training_too(tmp_path: Path) -> None:
    output = tmp_path / "training"
    saved = output / "checkpoints" / "last"
    (saved / "pretrained_model").mkdir(parents=True)
    (saved / "pretrained_model" / "train_config.json").write_text("{}")
    (saved / "training_state").mkdir()
    (saved / "training_state" / "training_step.json").write_text('{"step": 6}')
    given: list[list[str]] = []

    class Noting(Processes):
        def run(self, command, log, environment, limit=None):
            given.append([str(word) for word in command[1:]])
            (output / "done").touch()
            return 0

    command = ["torchrun", "--nproc_per_node=2", "/x/lerobot-train", f"--output_dir={output}", "--steps=9"]
    run_stage(Stage("training", "training", output / "done", command), tmp_path / "logs", Noting())
    config = saved / "pretrained_model" / "train_config.json"
    assert given == [["--nproc_per_node=2", "/x/lerobot-train", f"--config_path={config}", "--resume=true"]]


def test_a_folder_whose_claim_was_interrupted_is_claimed_again(tmp_path: Path) -> None:
    root = tmp_path / "experiment"
    (root / ".setting.json.abcdefgh.part").mkdir(parents=True)
    with claimed(root, "setting.json", {"steps": 2}):
        assert read_json(root / "setting.json") == {"steps": 2}
    asked = {"steps": 2, "lr": 0.1}
    with (
        pytest.raises(AegisError, match="without --lr: choose another"),
        claimed(root, "setting.json", asked),
    ):
        pass
    (root / "setting.json").unlink()
    (root / "mine.txt").write_text("precious")
    with pytest.raises(AegisError, match="already holds other files"), claimed(root, "setting.json", {}):
        pass
