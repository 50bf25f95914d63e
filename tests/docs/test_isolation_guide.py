"""The guide to any model: its loop runs as printed."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

_GUIDE = Path(__file__).parents[2] / "docs" / "isolation.md"


def _blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", _GUIDE.read_text(), re.M | re.S)


def test_the_loop_learns_and_the_questions_stay(
    tiny_vlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "loop.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tiny_vlm_dir)])

    def moved(code: str) -> tuple[float, float]:
        script.write_text(code)
        torch.manual_seed(0)  # one head for both
        runpy.run_path(str(script), run_name="__main__")
        printed = capsys.readouterr().out
        found = re.search(r"loss (\S+), hidden states of the questions moved by (\S+)%", printed)
        assert found is not None, printed
        return float(found[1]), float(found[2])

    loop = _blocks()[0]
    loss, protected = moved(loop)
    _, free = moved(loop.replace(", LowRankProjector(layers, blocks)", ""))
    assert loss < 0.4, "a constant is off by 0.5"
    assert protected < 0.6 * free


def test_names_of_the_second_block_exist() -> None:
    imports = "\n".join(line for line in _blocks()[1].splitlines() if line.startswith("from "))
    exec(imports, {})
