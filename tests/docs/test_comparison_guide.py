"""The commands of the guide to comparisons can be given as printed."""

import re
import shlex
from pathlib import Path

import draccus
import pytest

from aegis_eval.commands.compare import CompareConfig
from aegis_eval.commands.report import ReportConfig
from aegis_eval.commands.work.compare import compare

_GUIDE = (Path(__file__).parents[2] / "docs" / "comparison.md").read_text()


def test_the_comparison_of_the_guide_is_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^aegis-compare (.*)$", _GUIDE, re.M)
    (grid,) = re.findall(r"`(--lr_grid=\S+)`", _GUIDE)
    arguments = [*shlex.split(command), grid, "--dry_run=true"]
    assert compare(draccus.parse(config_class=CompareConfig, args=arguments)) is None
    plan = capsys.readouterr().out
    assert "runs: 12 jobs" in plan and "choosing learning rates: 9 jobs" in plan


def test_the_report_of_the_guide_has_its_flags() -> None:
    (command,) = re.findall(r"`aegis-report (\S+)`", _GUIDE)
    assert draccus.parse(config_class=ReportConfig, args=[command]).runs == Path("outputs/compare")
