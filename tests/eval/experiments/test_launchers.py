"""Jobs of commands: what is finished stays, what fails is named, what is stopped goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from running_processes import wait_for, writers_under

from aegis_eval.experiments.launchers import Progress, run_jobs, run_jobs_on_ray
from aegis_eval.experiments.stage import Job, Processes, Stage, continued, run_stage
from aegis_policy.support.errors import AegisError


def _stage(tmp_path: Path, name: str, code: str) -> Stage:
    """Python code that finds its result's path in `out`."""
    out = tmp_path / f"{name}.out"
    program = f"from pathlib import Path; out = Path({str(out)!r}); {code}"
    return Stage(name, name, out, [Path(sys.executable).name, "-c", program])


def test_a_stage_makes_its_result_once(tmp_path: Path) -> None:
    count = "n = int(out.read_text() or 0) if out.exists() else 0; out.write_text(str(n + 1))"
    job = Job("job", [_stage(tmp_path, "one", count), _stage(tmp_path, "two", count)], tmp_path)
    assert not job.done
    for _ in range(2):
        assert run_jobs([job], at_once=2) == {}
    record = json.loads((tmp_path / "one.json").read_text())
    assert record["seconds"] > 0 and record["command"][1] == "-c"
    assert job.done and (tmp_path / "one.out").read_text() == (tmp_path / "two.out").read_text() == "1"


def test_a_failure_names_its_log_and_stops_only_its_own_job(tmp_path: Path) -> None:
    broken = Job("broken", [_stage(tmp_path, "boom", "raise SystemExit('no such dataset')")], tmp_path)
    sound = [
        Job(f"sound{i}", [_stage(tmp_path, f"s{i}", "out.write_text('ok')")], tmp_path) for i in range(3)
    ]
    failed = run_jobs([broken, *sound], at_once=2)
    assert list(failed) == ["broken"]
    assert "no such dataset" in str(failed["broken"]) and "boom.log" in str(failed["broken"])
    assert all(job.done for job in sound)


def test_a_command_without_its_result_has_failed(tmp_path: Path) -> None:
    with pytest.raises(AegisError, match="ended with status 0"):
        run_stage(_stage(tmp_path, "idle", "print('nothing')"), tmp_path / "logs")


@pytest.mark.parametrize(("at_once", "threads"), [(1, "6"), (2, "3"), (4, "1"), (9, "1")])
def test_cores_are_shared_among_the_jobs_that_run_at_once(
    at_once: int, threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    code = "import os; out.write_text(os.environ['OMP_NUM_THREADS'])"
    run_jobs([Job("a", [_stage(tmp_path, "a", code)], tmp_path)], at_once=at_once)
    assert (tmp_path / "a.out").read_text() == threads


def test_being_stopped_ends_the_commands(tmp_path: Path) -> None:
    waiting = "import time; Path(str(out) + '.started').touch(); time.sleep(60); out.touch()"
    jobs = [Job(f"j{i}", [_stage(tmp_path, f"w{i}", waiting)], tmp_path) for i in range(3)]

    def stop() -> None:
        while not (tmp_path / "w0.out.started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, at_once=1)
    assert time.monotonic() - started < 30
    assert not any(job.done for job in jobs)
    wait_for(lambda: str(tmp_path) not in _running())


def test_a_training_that_saved_goes_on(tmp_path: Path) -> None:
    """What the shell is given, and what is noted; that LeRobot does go on from it is seen in the slow tests."""
    output, logs = tmp_path / "training", tmp_path / "logs"
    stage = Stage(
        "training", "training", output / "done", ["lerobot-train", f"--output_dir={output}", "--steps=9"]
    )
    given: list[list[str]] = []

    class Noting(Processes):
        def run(self, command, log, environment, limit=None):
            given.append([str(word) for word in command[1:]])
            with log.open("a") as lines:
                lines.write("step:3 loss:1.0\n")
            if len(given) == 1:
                saved = output / "checkpoints" / "last"
                (saved / "pretrained_model").mkdir(parents=True)
                (saved / "training_state").mkdir()
                (saved / "pretrained_model" / "train_config.json").write_text("{}")
                (saved / "training_state" / "training_step.json").write_text('{"step": 6}')
                return -signal.SIGKILL
            stage.result.touch()
            return 0

    with pytest.raises(AegisError, match="lerobot-train ended with status -9"):
        run_stage(stage, logs, Noting())
    first = (logs / "training.log").read_text()
    begun = first.split()[2]
    an_hour_ago = (datetime.fromisoformat(begun) - timedelta(hours=1)).isoformat()
    (logs / "training.log").write_text(first.replace(begun, an_hour_ago))
    assert run_stage(stage, logs, Noting()) == pytest.approx(3600, abs=30), "what came before counts"
    checkpoint = output / "checkpoints" / "last"
    assert given == [
        [f"--output_dir={output}", "--steps=9"],
        [f"--config_path={checkpoint / 'pretrained_model' / 'train_config.json'}", "--resume=true"],
    ]
    log = (logs / "training.log").read_text()
    record = json.loads((logs / "training.json").read_text())
    assert record["command"] == stage.command and record["resumed_at_step"] == 6
    assert log.count("step:3") == 2 and "s at step 0\n" in log and "s at step 6\n" in log


def test_half_a_result_is_none(tmp_path: Path) -> None:
    """LeRobot writes `eval_info.json` in its place, and may be killed meanwhile."""
    stage = replace(_stage(tmp_path, "rollouts", "out.write_text('[1]')"), result=tmp_path / "rollouts.json")
    stage = replace(stage, command=[*stage.command[:2], f"open({str(stage.result)!r}, 'w').write('[1]')"])
    for half in ("", '{"overall": {"pc_succ', b"\xff"):
        stage.result.write_bytes(half if isinstance(half, bytes) else half.encode())
        assert not stage.done
        assert run_jobs([Job("job", [stage], tmp_path / "logs")], at_once=1) == {}
        assert stage.done and json.loads(stage.result.read_text()) == [1]


def test_what_finished_before_the_experiment_could_note_it_has_its_seconds_from_the_log(
    tmp_path: Path,
) -> None:
    stage = _stage(tmp_path, "one", "out.touch()")
    assert stage.record(tmp_path) == {}
    run_stage(stage, tmp_path)
    (tmp_path / "one.json").unlink()
    begun = datetime.fromisoformat((tmp_path / "one.log").read_text().split()[2]).timestamp()
    os.utime(tmp_path / "one.log", (begun, begun + 90))
    assert stage.record(tmp_path) == {"command": stage.command, "seconds": 90.0}


def test_a_training_killed_while_lerobot_moved_its_link_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "training"
    for step, files in (("2", ["scheduler_state.json"]), ("4", ["scheduler_state.json"]), ("6", [])):
        saved = output / "checkpoints" / f"00000{step}"
        (saved / "pretrained_model").mkdir(parents=True)
        (saved / "pretrained_model" / "train_config.json").write_text("{}")
        (saved / "training_state").mkdir()
        for name in ("training_step.json", *files):
            (saved / "training_state" / name).write_text(json.dumps({"step": int(step)}))
    command = ["lerobot-train", f"--output_dir={output}", "--steps=9"]
    config = output / "checkpoints" / "000004" / "pretrained_model" / "train_config.json"
    assert continued(command) == (["lerobot-train", f"--config_path={config}", "--resume=true"], 4)


def test_commands_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from aegis_eval.experiments.stage import Processes; "
        f"Processes().run(['sleep', '61.5'], Path({str(tmp_path / 'log')!r}), {{}})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: "sleep 61.5" in _running())
    parent.kill()
    parent.wait()
    wait_for(lambda: "sleep 61.5" not in _running())


PROGRAMS = Path(sys.executable).parent


def test_a_command_of_this_environment_is_forked_with_its_flags_log_and_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes, log, before = Processes(forked=True), tmp_path / "log", dict(os.environ)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process of its own"))
        assert processes.run([PROGRAMS / "aegis-drift", "--help"], log, {}) == 0
        assert processes.run([PROGRAMS / "aegis-drift", "--samples=none"], log, {}) == 2
        variables = {"COLUMNS": "40"}
        assert processes.run([PROGRAMS / "aegis-drift", "--help"], tmp_path / "narrow", variables) == 0
    text = log.read_text()
    assert text.startswith("usage: aegis-drift") and "samples" in text.splitlines()[-1], "appended"
    assert (
        max(map(len, (tmp_path / "narrow").read_text().splitlines()[:5]))
        <= 40
        < max(map(len, text.splitlines()[:5]))
    )
    assert dict(os.environ) == before
    assert processes.run(["true"], log, {}) == 0, "any other is started as it is"


_RECORDING = ["aegis-record", "--env.type=aegis_tabletop", "--episodes=100000"]


def test_being_stopped_ends_a_forked_command(tmp_path: Path) -> None:
    command = [*_RECORDING, f"--root={tmp_path / 'data'}"]
    job = Job("job", [Stage("recording", "recording", tmp_path / "never", command)], tmp_path)
    log = tmp_path / "recording.log"

    def stop() -> None:
        wait_for(lambda: _records(log))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job], at_once=1)
    wait_for(lambda: not writers_under(log))


def test_a_forked_command_does_not_outlive_a_killed_experiment(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [str(PROGRAMS / _RECORDING[0]), *_RECORDING[1:], f"--root={tmp_path / 'data'}"]
    code = (
        "from pathlib import Path; from aegis_eval.experiments.stage import Processes; "
        f"Processes(forked=True).run({command!r}, Path({str(log)!r}), {{}})"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as experiment:
        try:
            wait_for(lambda: _records(log))
        finally:
            experiment.kill()
    wait_for(lambda: not writers_under(log))


def _records(log: Path) -> bool:
    """Its workers have made an episode."""
    return log.exists() and re.search(r" [1-9]\d*/100000 ", log.read_text()) is not None


def test_progress_counts_costs_and_what_was_done_before(tmp_path: Path) -> None:
    stages = [replace(_stage(tmp_path, name, ""), cost=cost) for name, cost in (("a", 1.0), ("b", 3.0))]
    stages[0].result.touch()
    with Progress([Job("job", stages, tmp_path)], "test") as progress:
        assert progress.share == 0.25
        progress.look()
        assert progress.share == 0.25
        stages[1].result.touch()
        progress.look()
        progress.finished(stages[1])
        assert progress.share == 1.0


@pytest.mark.tools
def test_on_ray_a_lost_worker_costs_only_its_job_which_is_run_again(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    deadly = (
        "import os, time; first = Path(str(out) + '.first')\n"
        "if not first.exists(): first.touch(); os.kill(os.getppid(), 9); time.sleep(60)\n"
        "out.write_text('second')"
    )
    jobs = [
        Job(
            "lost",
            [_stage(tmp_path, "before", "out.write_text('once')"), _stage(tmp_path, "lost", deadly)],
            tmp_path,
        ),
        Job("sound", [_stage(tmp_path, "sound", "out.write_text('ok')")], tmp_path),
        Job("broken", [_stage(tmp_path, "broken", "raise SystemExit('no such dataset')")], tmp_path),
    ]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with pytest.raises(AegisError, match="has the 64 cores and 0 GPUs that a job asks for"):
            run_jobs_on_ray(jobs, cpus=64)
        failed = run_jobs_on_ray(jobs)
    finally:
        cluster.shutdown()
    assert list(failed) == ["broken"] and "no such dataset" in str(failed["broken"])
    assert (tmp_path / "lost.out").read_text() == "second"
    assert jobs[1].done


def test_ray_is_asked_for_by_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AegisError, match=r"uv pip install '\.\[ray\]'"):
        run_jobs_on_ray([])


def _running() -> str:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
