"""The README: its commands as printed, with smaller numbers, on a tiny VLM and small random data; its length."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import yaml
from official_files import write_okvqa
from random_data import write_random_questions

_ROOT = Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text()
_SMALL = {
    "aegis-anchor": ["--samples=4"],
    "lerobot-train": [
        *["--steps=2", "--save_freq=2", "--batch_size=4", "--num_workers=0", "--policy.device=cpu"],
        *["--policy.expert_width=32", "--policy.expert_depth=2", "--dataset.repo_id=local/tiny"],
    ],
    "aegis-vqa": ["--samples=4", "--batch_size=4", "--device=cpu"],
}


def _replaced(command: list[str], others: list[str]) -> list[str]:
    """The command with `others` in place of its own flags of the same names."""
    given = {flag.split("=")[0] for flag in others}
    return [*(flag for flag in command if flag.split("=")[0] not in given), *others]


def test_three_commands_take_ones_own_vlm_and_data_to_what_was_kept(
    shell: Callable[..., subprocess.CompletedProcess[str]],
    tiny_vlm_dir: Path,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    section = _README.split("\n## Your VLM, your data\n")[1].split("\n## ")[0]
    blocks = "".join(re.findall(r"^```\n(.*?)^```", section, re.M | re.S)).replace("\\\n", " ")
    commands = [shlex.split(line) for line in blocks.splitlines() if line]
    assert [command[0] for command in commands] == ["aegis-anchor", "lerobot-train", "aegis-vqa"]
    write_random_questions(tmp_path / "my_vqa")
    write_okvqa(tmp_path / "data" / "okvqa")
    own = {
        "aegis-anchor": [f"--vlm={tiny_vlm_dir}"],
        "lerobot-train": [f"--policy.vlm={tiny_vlm_dir}", f"--dataset.root={tiny_dataset}"],
        "aegis-vqa": [],
    }
    for command in commands:
        small = _replaced(command, [*_SMALL[command[0]], *own[command[0]]])
        done = shell(*small, cwd=tmp_path, fork=command[0] != "aegis-anchor")
        assert done.returncode == 0, f"{shlex.join(small)}\n{done.stderr[-3000:]}"
    assert (tmp_path / "outputs/libero/checkpoints/000002/pretrained_model").exists()
    assert list(tmp_path.glob("outputs/vqa/*/results.json"))


def test_a_user_reads_it_in_one_go_and_its_links_lead_somewhere() -> None:
    assert len(_README.splitlines()) <= 120
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", _README):
        assert (_ROOT / link).exists(), link


def test_the_table_is_that_of_the_results_page() -> None:
    """Whole percents of the first table there: success on both splits, and the answers lost."""
    names = {"aegis, as published (gaussian)": "gaussian", "aegis, default (subspace)": "aegis"}
    results = (_ROOT / "docs" / "results.md").read_text()
    page = {}
    for row in re.findall(r"^\| (\w+) \| 0\.001 \|(.*)\|$", results, re.M):
        page.setdefault(row[0], [cell.strip() for cell in row[1].split("|")])
    rows = re.findall(r"^\| (`.*?) \|(.*)\|(.*)\|(.*)\|$", _README, re.M)
    assert len(rows) == 6
    for name, *cells in rows:
        plain = name.replace("`", "").split(", s")[0]
        success, _, _, lost, unseen, *_ = page[names.get(plain, plain)]
        assert cells[0].strip() == _whole(success) and cells[1].strip() == _whole(unseen)
        assert cells[2].strip() == _turned(lost)


def _numbers(cell: str) -> list[float]:
    return [float(each.replace("−", "-").replace("+", "")) for each in re.findall(r"[−+]?[\d.]+", cell)]


def _whole(cell: str) -> str:
    middle, low, high = (f"{each:.0f}" for each in _numbers(cell))
    return f"{middle} [{low}, {high}]"


def _turned(cell: str) -> str:
    """What was lost, of a difference to the pretrained model."""
    middle, low, high = _numbers(cell)
    if middle == low == high == 0:
        return "0"
    return f"{-middle:.1f} [{-high:.1f}, {-low:.1f}]".replace("-", "−")


def test_the_citation_names_author_title_and_number() -> None:
    cited = yaml.safe_load((_ROOT / "CITATION.cff").read_text())["preferred-citation"]
    (author,) = cited["authors"]
    title = re.sub(r"[{}]", "", re.search(r"title += \{(.*)\},", _README)[1])  # type: ignore[index]
    assert title == cited["title"]
    assert f"{author['given-names']} {author['family-names']}" in _README
    assert cited["identifiers"][0]["value"].removeprefix("arXiv:") in _README
