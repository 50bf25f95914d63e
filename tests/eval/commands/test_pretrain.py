"""Pretraining from nothing: it learns, it can be stopped and continued, and it leaves a plain directory."""

import io
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_vlms import SMALLEST_SIZE
from transformers import AutoModelForImageTextToText

import aegis_eval.commands.work.pretrain as module
from aegis_eval.commands.pretrain import PretrainConfig
from aegis_eval.commands.work.pretrain import pretrain
from aegis_policy.isolation import Anchor
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures are kept, for all trainings here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(tmp_path: Path, cache: Path) -> PretrainConfig:
    return _config(tmp_path / "vlm", cache)


def _config(out: Path, cache: Path) -> PretrainConfig:
    return PretrainConfig(
        out=out,
        size=SMALLEST_SIZE,
        scenes=12,
        steps=12,
        batch_size=4,
        warmup_steps=2,
        save_freq=3,
        eval_freq=6,
        vision_steps=6,
        val_samples=12,
        card_samples=12,
        transfer_samples=6,
        anchor_samples=12,
        cache_dir=cache,
    )


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(path).state_dict()


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PretrainConfig, str]:
    """A training that nothing interrupted, and what it printed."""
    config = _config(tmp_path_factory.mktemp("whole") / "vlm", cache)
    with redirect_stdout(io.StringIO()) as printed:
        pretrain(config)
    return config, printed.getvalue()


def test_a_training_leaves_a_model_with_its_anchor_and_its_card(whole: tuple[PretrainConfig, str]) -> None:
    config, printed = whole
    assert "validation accuracy" in printed
    card = (config.out / "README.md").read_text()
    assert "| `steps` | 12 |" in card
    assert "colour+relation" in card and "6\nquestions" in card
    anchor = Anchor.load(config.out / "anchor.safetensors")
    anchor.check(1, 32)
    assert anchor.metadata["fingerprint"] == VLMBackbone.from_pretrained(config.out).fingerprint()


@pytest.mark.parametrize(("phase", "at"), [("patches_at", 5), ("at", 0), ("at", 8)])
def test_an_interrupted_training_continues_to_the_same_weights(
    phase: str,
    at: int,
    whole: tuple[PretrainConfig, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = whole[0]
    stopped = replace(config, out=tmp_path / "stopped")
    original = getattr(module.QuestionBatches, phase)
    repeated: list[int] = []

    def stop(self: module.QuestionBatches, step: int) -> object:
        if step == at:
            raise KeyboardInterrupt
        return original(self, step)

    def watch(self: module.QuestionBatches, step: int) -> object:
        repeated.append(step)
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(module.QuestionBatches, phase, stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(stopped)
    assert not stopped.out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(module.QuestionBatches, phase, watch)
        pretrain(stopped)
    assert repeated[0] == at - at % config.save_freq
    expected, continued = _weights(config.out), _weights(stopped.out)
    assert all(torch.equal(expected[name], continued[name]) for name in expected)
    assert not stopped.out.with_name("stopped.training").exists()


def test_other_flags_do_not_continue_somebody_elses_training(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config)
    with pytest.raises(AegisError, match="other values of lr"):
        pretrain(replace(config, lr=1.0))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"steps": 0}, "--steps=0 must be at least 1"),
        ({"save_freq": 0}, "--save_freq=0 must be at least 1"),
        ({"card_samples": 0}, "--card_samples=0 must be at least 1"),
        ({"seed": -1}, "--seed=-1 must be at least 0"),
        ({"batch_size": 13}, "--batch_size=13 .* not exceed --scenes=12"),
        ({"mixed_precision": "fp4"}, "--mixed_precision=fp4 is unknown"),
    ],
)
def test_numbers_that_cannot_be_are_named(
    config: PretrainConfig, flags: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(AegisError, match=sentence):
        pretrain(replace(config, cache_dir=tmp_path / "cache", **flags))
    assert list(tmp_path.iterdir()) == []


def test_a_finished_model_is_never_overwritten(config: PretrainConfig) -> None:
    config.out.mkdir()
    (config.out / "config.json").write_text("{}")
    with pytest.raises(AegisError, match="--out="):
        pretrain(config)


def test_the_loss_falls_on_scenes_seen_again(config: PretrainConfig) -> None:
    vlm = module.build_small_vlm(module.vocabulary(), SMALLEST_SIZE, 0, "test")
    scenes = module.scene_images("train", 8, 0, config.cache_dir)
    batches = module.QuestionBatches(scenes, vlm, steps=10**6, batch_size=8, questions=3, seed=0)
    loss_module = module.AnswerLoss(vlm)
    optimizer = torch.optim.AdamW(vlm.parameters(), lr=3e-3)
    losses = []
    for step in range(80):
        loss = loss_module(*batches.at(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
