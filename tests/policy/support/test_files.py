"""Files and folders that are whole or absent, whatever ends the command that writes them; places of one command."""

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from full_disk import largest_file
from safetensors.torch import save_file

from aegis_policy.support.disk import refusal
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import alone, atomic_contents, atomic_directory, atomic_write, require_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Python with these functions imported and `place` given, once it has said that it is ready."""
    head = "import sys, time; from pathlib import Path; from aegis_policy.support.files import *; "
    command = [sys.executable, "-c", f"{head}place = Path(sys.argv[1])\n{code}", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stdout.readline() == "ready\n"
        try:
            yield running
        finally:
            running.kill()


_WAIT = "print('ready', flush=True); time.sleep(60)"
WAITING = {
    atomic_write: f"with atomic_write(place) as new:\n new.write_text('ha')\n {_WAIT}",
    atomic_directory: f"with atomic_directory(place) as new:\n (new / 'a').write_text('ha')\n {_WAIT}",
}
WAITING[atomic_contents] = WAITING[atomic_directory].replace("atomic_directory", "atomic_contents")
Atomic = Callable[[Path], object]


def write(atomic: Atomic, place: Path) -> None:
    with atomic(place) as new:  # type: ignore[attr-defined]
        (new if atomic is atomic_write else new / "a").write_text("whole")


def written(place: Path) -> str:
    file = place if place.is_file() else place / "a"
    return file.read_text() if file.exists() else ""


@pytest.mark.parametrize("atomic", WAITING)
def test_what_a_killed_command_was_writing_is_gone_when_it_is_written_again(
    atomic: Atomic, tmp_path: Path
) -> None:
    place = tmp_path / "re[s]ult*"
    with process(WAITING[atomic], place) as killed:
        killed.kill()
        killed.wait()
        assert list(tmp_path.rglob(".*.part")) and not written(place)
        write(atomic, tmp_path / "other")
        assert list(tmp_path.rglob(".*.part")), "only what is written again"
        write(atomic, place)
    assert names(tmp_path) == ["other", place.name] and written(place) == "whole"
    assert not list(tmp_path.rglob(".*"))


def test_a_command_killed_as_it_removed_what_it_had_written_leaves_nothing_either(tmp_path: Path) -> None:
    (tmp_path / ".result.abcdefgh.part").mkdir()
    write(atomic_write, tmp_path / "result")
    assert names(tmp_path) == ["result"]


@pytest.mark.parametrize("atomic", WAITING)
def test_what_another_command_is_writing_is_left_alone(atomic: Atomic, tmp_path: Path) -> None:
    place = tmp_path / "result"
    with process(WAITING[atomic], place):
        write(atomic, place)
        assert len(list(tmp_path.rglob(".*.part"))) == 1 and written(place) == "whole"


@pytest.mark.parametrize("atomic", WAITING)
def test_files_have_the_rights_that_others_get(atomic: Atomic, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(atomic, tmp_path / "result")
        with atomic_write(tmp_path / "tensors") as new:
            save_file({"x": torch.zeros(2)}, new)
        with atomic_contents(tmp_path / "checkpoint") as new:
            save_file({"x": torch.zeros(2)}, new / "inside")
    finally:
        os.umask(before)
    wanted = {"result": 0o640 if atomic is atomic_write else 0o750, "tensors": 0o640, "inside": 0o640}
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert wanted.items() <= found.items()


@pytest.mark.parametrize("atomic", WAITING)
def test_an_error_leaves_what_was_there(atomic: Atomic, tmp_path: Path) -> None:
    if atomic is atomic_write:
        write(atomic, tmp_path / "result")
    before = names(tmp_path)
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "result") as new:  # type: ignore[attr-defined]
        (new if atomic is atomic_write else new / "a").write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == before and all(written(tmp_path / name) == "whole" for name in before)


def test_a_folder_takes_an_empty_ones_place_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    write(atomic_directory, tmp_path / "result")
    with pytest.raises(AegisError, match=r"result cannot be used \(Directory not empty\): move the files"):
        write(atomic_directory, tmp_path / "result")
    assert names(tmp_path) == ["result"] and written(tmp_path / "result") == "whole"


def test_a_place_is_one_commands_at_a_time(tmp_path: Path) -> None:
    place = tmp_path / "new" / "result"
    code = f"with alone(place, '--out'):\n {_WAIT}"
    with process(code, place) as other:
        with pytest.raises(AegisError, match=rf"Another command is at work in --out={place}: wait"):
            with alone(place, "--out"):
                pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with alone(place, "--out"):
            assert names(place.parent) == [".result.lock"]
    assert names(place.parent) == []


def test_those_who_wait_for_a_place_get_it_one_after_the_other(tmp_path: Path) -> None:
    """The lock is removed with the place let go, under the hands of the others."""
    code = (
        "print('ready', flush=True)\nfrom contextlib import suppress\nheld = 0\nwhile held < 200:\n"
        " with suppress(AegisError), alone(place, '--out'):\n"
        "  os.close(os.open(place, os.O_CREAT | os.O_EXCL)); place.unlink(); held += 1"
    )
    with process(code, tmp_path / "x") as one, process(code, tmp_path / "x") as two:
        assert one.wait(60) == two.wait(60) == 0
    assert names(tmp_path) == []


def test_a_file_is_not_written_over_a_folder(tmp_path: Path) -> None:
    with pytest.raises(AegisError, match=rf"--out={tmp_path} is a folder: name a file"):
        require_file(tmp_path, "--out")
    with pytest.raises(AegisError, match=rf"{tmp_path} cannot be used \(Is a directory\)"):
        write(atomic_write, tmp_path)


def test_below_a_file_there_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "a", tmp_path / "file" / "a" / "b"):
        with pytest.raises(AegisError, match=rf"^--out={place} cannot be used .*: .*name another place\.$"):
            with alone(place, "--out"):
                pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "fill",
    [
        lambda path: path.write_bytes(bytes(5000)),
        lambda path: save_file({"x": torch.zeros(5000)}, path),
        lambda path: path.symlink_to("/dev/full") or path.write_bytes(bytes(5000)),
    ],
    ids=["python", "safetensors", "no space"],
)
def test_what_does_not_fit_is_told_in_a_sentence_and_leaves_what_was_there(
    fill: Callable[[Path], object], tmp_path: Path
) -> None:
    place = tmp_path / "result"
    place.write_text("earlier")
    said = rf"^{place} cannot be written \((File too large|No space left on device)\): .*, or name another place\.$"
    with largest_file(1000), pytest.raises(AegisError, match=said), atomic_write(place) as new:
        fill(new)
    assert names(tmp_path) == ["result"] and place.read_text() == "earlier"


def test_errors_of_other_files_name_those() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/data/image.png")
    told = "/data/image.png cannot be used (Permission denied): ask for the right to use it, or name another place."
    assert refusal(error, Path("/out/result")) == told
    assert refusal(ValueError("(os error of mine)")) is None and refusal(OSError("no such model")) is None
    wrapped = RuntimeError("the tokenizer")
    wrapped.__cause__ = Exception("No space left on device (os error 28)")
    assert refusal(wrapped, Path("/out/x"), "--out=/out/x") == (
        "--out=/out/x cannot be written (No space left on device): free some space there, or name another place."
    )
