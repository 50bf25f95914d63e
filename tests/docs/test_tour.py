"""The tour and the guide to extensions name files that are there, and what those files define."""

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_FOLDERS = ("", "aegis_policy", "eval/aegis_eval", "envs/aegis_envs", "aegis_policy/protections")
_TOUR = (_ROOT / "docs" / "tour.md").read_text()
_EXTENDING = (_ROOT / "docs" / "extending.md").read_text()
_SOURCES = "\n".join(
    path.read_text()
    for folder in ("aegis_policy", "envs/aegis_envs", "eval/aegis_eval")
    for path in sorted((_ROOT / folder).rglob("*.py"))
)


def _spans(page: str) -> list[str]:
    """What stands in backticks, outside blocks of code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S))


@pytest.mark.parametrize("page", [_TOUR, _EXTENDING], ids=["tour", "extending"])
def test_files_are_there(page: str) -> None:
    tails = {path.relative_to(_ROOT).as_posix() for path in _ROOT.glob("[!.]*/**/*") if path.is_file()}
    for span in _spans(page):
        if re.fullmatch(r"[\w./-]+\.(py|md|css|toml)", span) and span not in ("env.py", "demonstrations.py"):
            assert any(f"/{each}".endswith(f"/{span}") for each in tails) or (_ROOT / span).exists(), span
        elif re.fullmatch(r"[\w./-]+/", span) and "NAME" not in span:
            assert any((_ROOT / folder / span).is_dir() for folder in _FOLDERS), span


@pytest.mark.parametrize("page", [_TOUR, _EXTENDING], ids=["tour", "extending"])
def test_names_are_defined(page: str) -> None:
    """Functions, classes and tables of ours: names with a capital or an underscore."""
    not_ours = {"EnvConfig", "NAME", "agent_pos", "gymnasium.Env", "...Config"}
    for span in _spans(page):
        if re.fullmatch(r"[\w.]+", span) and re.search(r"[A-Z_]", span) and not span.endswith((".py", ".md")):
            name = span.rsplit(".")[-1]
            defined = rf"(def|class) {re.escape(name)}\b|^\s*(self\.)?{re.escape(name)}\b(:.*)? ="
            assert span in not_ours or re.search(defined, _SOURCES, re.M), span
