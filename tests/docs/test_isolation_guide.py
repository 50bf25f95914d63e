"""The guide to any model: its loop runs as printed."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

_GUIDE = Path(__file__).parents[2] / "docs" / "isolation.md"


def _blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", _GUIDE.read_text(), re.M | re.S)


def test_the_loop_learns_and_the_questions_stay(
    shell: Callable[..., subprocess.CompletedProcess[str]], tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    def moved(code: str) -> tuple[float, float]:
        (tmp_path / "loop.py").write_text(code)
        done = shell("python", str(tmp_path / "loop.py"), str(tiny_vlm_dir))
        assert done.returncode == 0, done.stderr[-2000:]
        found = re.search(r"loss (\S+), hidden states of the questions moved by (\S+)%", done.stdout)
        assert found is not None
        return float(found[1]), float(found[2])

    loop = _blocks()[0]
    loss, protected = moved(loop)
    _, free = moved(loop.replace(", LowRankProjector(layers, blocks)", ""))
    assert loss < 0.4, "a constant is off by 0.5"
    assert protected < 0.6 * free


def test_names_of_the_second_block_exist() -> None:
    imports = "\n".join(line for line in _blocks()[1].splitlines() if line.startswith("from "))
    exec(imports, {})
