"""Every checkpoint says what it is, and what it still answers."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import filter_repo_objects
from lerobot.configs import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from training_steps import MakePolicy

from aegis_eval.checkpoints import PolicySource
from aegis_eval.commands.vqa import VqaConfig
from aegis_eval.commands.work.vqa import evaluate
from aegis_policy.checkpoint.card import CARD_FILE, VQAScore, add_score
from aegis_policy.modeling_aegis import AegisPolicy


def rows(folder: Path) -> list[str]:
    text = (folder / CARD_FILE).read_text()
    between = text.split("<!-- vqa -->\n")[1].split("<!-- /vqa -->")[0]
    return between.splitlines()[2:]


def test_a_checkpoint_has_a_card_with_protection_vlm_and_anchor(make_policy: MakePolicy, tmp_path: Path):
    policy = make_policy("aegis", anchor="gaussian")
    policy.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / CARD_FILE)
    assert card.data.library_name == "lerobot" and {"aegis", "robotics"} <= set(card.data.tags)
    for part in (
        "| protection | aegis, gaussian |",
        f"fingerprint {policy.config.vlm_fingerprint}",
        "| anchor | ",
        "sha256 ",
        "0 steps",
        "Not asked yet.",
    ):
        assert part in card.text
    (anchor,) = [line for line in card.text.splitlines() if line.startswith("| anchor |")]
    AegisPolicy.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert anchor in (tmp_path / "again" / CARD_FILE).read_text(), "the same anchor, the same hash"
    assert anchor in policy.generate_model_card("me/data", "aegis", None, None).text
    make_policy("none").save_pretrained(tmp_path / "none")
    unprotected = (tmp_path / "none" / CARD_FILE).read_text()
    assert "| protection | none |" in unprotected and "| anchor |" not in unprotected


def test_the_probe_s_accuracy_before_and_last_is_on_the_card_and_survives_a_resume(
    make_policy: MakePolicy, make_batch, tmp_path: Path
):
    policy = make_policy("none", vqa_probe_freq=1, vqa_probe_samples=5).train()
    policy.save_pretrained(tmp_path / "fresh")
    assert "Not asked yet." in (tmp_path / "fresh" / CARD_FILE).read_text()
    policy.get_optim_params()
    policy(make_batch(size=2, seed=0))
    policy.save_pretrained(tmp_path / "first")
    (row,) = rows(tmp_path / "first")
    assert row.startswith("| tabletop, probed in training | 5 | ")
    again = AegisPolicy.from_pretrained(tmp_path / "first").train()
    again.get_optim_params()
    again(make_batch(size=2, seed=0))
    again.save_pretrained(tmp_path / "second")
    (later,) = rows(tmp_path / "second")
    assert later.split("|")[3] == row.split("|")[3] != "  ", "the accuracy before any training"


def test_asking_a_checkpoint_adds_a_line_and_asking_again_replaces_it(tiny_checkpoint: Path, tmp_path: Path):
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for path in tiny_checkpoint.rglob("*"):
        target = copy / path.relative_to(tiny_checkpoint)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    for samples, out in ((6, "one"), (7, "two"), (6, "again")):
        evaluate(
            VqaConfig(
                policy=PolicySource(str(copy)),
                samples=samples,
                output_dir=tmp_path / out,
                cache_dir=tmp_path / "cache",
            )
        )
    for row, (n, out) in zip(rows(copy), ((7, "two"), (6, "again")), strict=True):
        results = json.loads((tmp_path / out / "results.json").read_text())
        before = results["pretrained"]["accuracy"]
        assert row.startswith(
            f"| tabletop, test | {n} | {100 * before:.1f} | {100 * results['accuracy']:.1f} | +0.0 ["
        )
    assert AegisPolicy.from_pretrained(copy).config.protection == "none"


def test_a_card_of_someone_s_own_stays_as_it_is(tmp_path: Path):
    (tmp_path / CARD_FILE).write_text("# Mine\n")
    add_score(tmp_path, VQAScore("okvqa, val", 5000, 0.6))
    assert (tmp_path / CARD_FILE).read_text() == "# Mine\n"
    add_score(tmp_path / "nowhere", VQAScore("okvqa, val", 5000, 0.6))
    assert not (tmp_path / "nowhere").exists()


def test_a_line_says_what_is_known():
    assert VQAScore("okvqa, val", 5000, 0.6).row() == "| okvqa, val | 5000 |  | 60.0 |  |"
    known = VQAScore("okvqa, val", 5000, 0.602, 0.601, (0.0005, -0.01, 0.011))
    assert known.row() == "| okvqa, val | 5000 | 60.1 | 60.2 | +0.1 [-1.0, +1.1] |"


def test_the_hub_gets_the_same_card(make_policy: MakePolicy):
    card = make_policy("none").generate_model_card("me/data", "aegis", None, None)
    assert card.data.datasets == "me/data" and "| demonstrations | me/data |" in card.text
    unpublished = make_policy("none").generate_model_card("local/data", "aegis", None, None)
    assert unpublished.data.datasets is None and "| demonstrations | local/data |" in unpublished.text
    assert "What the VLM still answers" in card.text


def test_a_published_policy_bears_the_card_that_it_was_saved_with(
    make_policy: MakePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A hub of folders takes the place of the real one."""

    def upload(_: HfApi, *, folder_path: Path, repo_id: str, **options: Any) -> SimpleNamespace:
        patterns = {key: options.get(key) for key in ("allow_patterns", "ignore_patterns")}
        names = [
            path.relative_to(folder_path).as_posix()
            for path in Path(folder_path).rglob("*")
            if path.is_file()
        ]
        for name in filter_repo_objects(names, **patterns):
            (tmp_path / repo_id / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder_path) / name, tmp_path / repo_id / name)
        return SimpleNamespace(repo_url=SimpleNamespace(url=repo_id))

    monkeypatch.setattr(HfApi, "create_repo", lambda _, repo_id, **__: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    for anchor in ("gaussian", "subspace"):  # two policies of one process, as the averaged one is the second
        policy = make_policy("aegis", anchor=anchor, repo_id=f"me/{anchor}")
        policy.push_model_to_hub(TrainPipelineConfig(DatasetConfig("local/tiny"), policy=policy.config))
    for anchor in ("gaussian", "subspace"):
        card = ModelCard.load(tmp_path / "me" / anchor / CARD_FILE)
        assert f"| protection | aegis, {anchor} |" in card.text and "sha256 " in card.text
        assert (tmp_path / "me" / anchor / "train_config.json").is_file()
