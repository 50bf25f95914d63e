"""Jobs of commands: what is finished stays, what fails is named, what is stopped goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aegis_eval.stages import Job, Stage, run_jobs, run_stage
from aegis_policy.errors import AegisError


def _stage(tmp_path: Path, name: str, code: str) -> Stage:
    """Python code that finds its result's path in `out`."""
    out = tmp_path / f"{name}.out"
    program = f"from pathlib import Path; out = Path({str(out)!r}); {code}"
    return Stage(name, name, out, [Path(sys.executable).name, "-c", program])


def test_a_stage_makes_its_result_once(tmp_path: Path) -> None:
    count = "n = int(out.read_text() or 0) if out.exists() else 0; out.write_text(str(n + 1))"
    job = Job("job", [_stage(tmp_path, "one", count), _stage(tmp_path, "two", count)])
    assert not job.done
    for _ in range(2):
        assert run_jobs([job], tmp_path / "logs", at_once=2) == {}
    assert job.done and (tmp_path / "one.out").read_text() == (tmp_path / "two.out").read_text() == "1"


def test_a_failure_names_its_log_and_stops_only_its_own_job(tmp_path: Path) -> None:
    broken = Job("broken", [_stage(tmp_path, "boom", "raise SystemExit('no such dataset')")])
    sound = [Job(f"sound{i}", [_stage(tmp_path, f"s{i}", "out.write_text('ok')")]) for i in range(3)]
    failed = run_jobs([broken, *sound], tmp_path / "logs", at_once=2)
    assert list(failed) == ["broken"]
    assert "no such dataset" in str(failed["broken"]) and "boom.log" in str(failed["broken"])
    assert all(job.done for job in sound)


def test_a_command_without_its_result_has_failed(tmp_path: Path) -> None:
    with pytest.raises(AegisError, match="ended with status 0"):
        run_stage(_stage(tmp_path, "idle", "print('nothing')"), tmp_path / "logs")


def test_cores_are_shared_among_the_jobs_that_run_at_once(tmp_path: Path) -> None:
    code = "import os; out.write_text(os.environ['OMP_NUM_THREADS'])"
    run_jobs([Job("a", [_stage(tmp_path, "a", code)])], tmp_path / "logs", at_once=2, threads=3)
    assert (tmp_path / "a.out").read_text() == "3"


def test_being_stopped_ends_the_commands(tmp_path: Path) -> None:
    waiting = "import time; Path(str(out) + '.started').touch(); time.sleep(60); out.touch()"
    jobs = [Job(f"j{i}", [_stage(tmp_path, f"w{i}", waiting)]) for i in range(3)]

    def stop() -> None:
        while not (tmp_path / "w0.out.started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, tmp_path / "logs", at_once=1)
    assert time.monotonic() - started < 30
    assert not any(job.done for job in jobs)
    time.sleep(0.2)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in running


def test_a_training_that_saved_goes_on(tmp_path: Path) -> None:
    """The command that is given to the shell, as the log shows it: LeRobot complains of a made-up checkpoint."""
    output = tmp_path / "training"
    config = output / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    stage = Stage(
        "training", "training", output / "done", ["lerobot-train", f"--output_dir={output}", "--steps=1"]
    )
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    with pytest.raises(AegisError, match="lerobot-train ended with status"):
        run_stage(stage, tmp_path / "logs")
    assert config.is_file(), "a checkpoint is never removed"
