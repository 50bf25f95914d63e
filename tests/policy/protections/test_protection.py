"""What each protection lets the flow loss do to the backbone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from safetensors.torch import load_file, save_file
from training_steps import MakeBatch, MakePolicy, build_optimizer, training_step

from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.protections import PROTECTIONS, Step
from aegis_policy.protections.action_tokens import ActionChunks
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone


def prefix_inputs(policy: AegisPolicy, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return policy.vlm.prepare([batch[camera] for camera in policy.config.image_features], batch["task"])


def chunks(batch: dict[str, Any]) -> ActionChunks:
    return ActionChunks(batch["action"], batch["action_is_pad"])


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_gradient_reaches_every_layer_that_is_read_or_none(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str
) -> None:
    policy = make_policy(protection)
    build_optimizer(policy)
    policy.train()(make_batch())[0].backward()
    reached = [
        any(p.grad is not None and p.grad.any() for p in layer.parameters())
        for layer in policy.vlm.decoder_layers
    ]
    assert reached == [protection not in ("freeze", "stop_gradient")] * policy.vlm.num_layers
    assert all(p.grad is not None for p in policy.expert.parameters())


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_only_what_may_learn_changes(make_policy: MakePolicy, make_batch: MakeBatch, protection: str) -> None:
    policy = make_policy(protection)
    before = {name: p.detach().clone() for name, p in policy.vlm.named_parameters()}
    optimizer = build_optimizer(policy)
    for seed in range(2):
        training_step(policy, optimizer, make_batch(seed=seed))
    changed = {name for name, p in policy.vlm.named_parameters() if not torch.equal(p, before[name])}
    layers = {name for name in before if "language_model.layers." in name}
    if protection == "lora":
        layers = {name for name in layers if "lora_" in name}
    if protection == "knowledge_insulation":
        layers |= {name for name in before if name.endswith("embed_tokens.weight")}
    assert changed == (set() if protection in ("freeze", "stop_gradient") else layers)


def test_freeze_and_stop_gradient_train_to_the_same_weights(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    trained = []
    for protection in ("freeze", "stop_gradient"):
        torch.manual_seed(0)
        policy = make_policy(protection)
        optimizer = build_optimizer(policy)
        for seed in range(2):
            training_step(policy, optimizer, make_batch(seed=seed))
        trained.append(policy.state_dict())
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())


@pytest.mark.parametrize("part", ["vision_tower", "projector"])
@pytest.mark.parametrize("protection", ["none", "freeze", "aegis"])
def test_tower_and_projector_train_when_asked(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str, part: str
) -> None:
    policy = make_policy(protection, **{f"train_{part}": True})
    build_optimizer(policy)
    policy.train()(make_batch())[0].backward()
    grads = [p.grad for p in getattr(policy.vlm, part).parameters()]
    assert any(grad is not None and grad.any() for grad in grads)


@pytest.mark.parametrize(
    ("protection", "figure"),
    [("w2_penalty", "gaussian_anchor_distance"), ("l2_sp", "weight_penalty"), ("ewc", "weight_penalty")],
)
def test_a_strong_penalty_holds_the_backbone(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str, figure: str
) -> None:
    """What the penalty is about stays smaller than with a penalty of nothing."""

    def last(penalty: float) -> float:
        policy = make_policy(protection, penalty=penalty, optimizer_lr_backbone=1e-3)
        start = {name: p.detach().clone() for name, p in policy.vlm.decoder_layers.named_parameters()}
        optimizer = build_optimizer(policy)
        for seed in range(15):
            figures = training_step(policy, optimizer, make_batch(seed=seed % 3))
        if protection == "w2_penalty":
            return figures[figure]
        assert (figures[figure] > 0) == (penalty > 0)
        return sum(
            float((p.detach() - start[name]).square().sum())
            for name, p in policy.vlm.decoder_layers.named_parameters()
        )

    assert last(100.0) < 0.8 * last(0.0)


@pytest.mark.parametrize("protection", ["l2_sp", "ewc"])
def test_the_way_of_the_weights_counts_by_what_the_answers_depend_on(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str
) -> None:
    """Half the strength times the sum of F (W - W0)^2 in float64, where F is one for `l2_sp`; its gradient is F's."""
    policy = make_policy(protection, penalty=3.0, optimizer_lr_backbone=1e-2)
    start = {name: p.detach().clone().double() for name, p in policy.vlm.model.named_parameters()}
    optimizer = build_optimizer(policy)
    training_step(policy, optimizer, make_batch())
    batch = make_batch(seed=1)
    learns = {name: p for name, p in policy.vlm.model.named_parameters() if p.requires_grad}
    fisher = {name: torch.ones_like(p) for name, p in learns.items()}
    if protection == "ewc":
        assert policy.anchor is not None
        fisher = {name: policy.anchor.importance[name] for name in learns}
        assert all(weight.std() > 0 for weight in fisher.values()), "weights differ in what depends on them"
    pulls = {name: 3.0 * fisher[name] * (p.detach().double() - start[name]) for name, p in learns.items()}
    expected = sum(
        float((pull * (learns[name].detach().double() - start[name])).sum()) for name, pull in pulls.items()
    )
    step = policy.protection.begin_step(policy.vlm, prefix_inputs(policy, batch), chunks(batch))
    penalty = step.penalty()
    assert penalty is not None and penalty.figures == {"weight_penalty": penalty.loss.item()}
    assert penalty.loss.item() == pytest.approx(expected / 2, rel=1e-4)
    gradients = torch.autograd.grad(penalty.loss, list(learns.values()))
    for pull, gradient in zip(pulls.values(), gradients, strict=True):
        torch.testing.assert_close(gradient.double(), pull, rtol=1e-4, atol=1e-7)


def test_a_penalty_that_is_not_finite_stops_before_the_weights_change(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("l2_sp")
    assert policy.reference is not None
    next(iter(policy.reference.values())).fill_(torch.inf)
    build_optimizer(policy)
    with pytest.raises(AegisError, match="not finite at training step 1"):
        policy.train()(make_batch())


@pytest.mark.parametrize(
    ("protection", "options"),
    [("w2_penalty", {}), ("distill", {}), ("knowledge_insulation", {"replay_batch_size": 0})],
)
def test_a_step_keeps_to_itself_what_belongs_to_it(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str, options: dict[str, Any]
) -> None:
    """Two steps that are under way at once find what each of them finds alone."""
    policy = make_policy(protection, optimizer_lr_backbone=1e-2, **options)
    training_step(policy, build_optimizer(policy), make_batch(seed=2))

    def begin(seed: int) -> Step:
        batch = make_batch(seed=seed)
        return policy.protection.begin_step(policy.vlm, prefix_inputs(policy, batch), chunks(batch))

    def end(step: Step) -> tuple[dict[str, float], dict[str, float]]:
        figures, penalty = step.finish(), step.penalty()
        return figures, {} if penalty is None else penalty.figures

    alone = [end(begin(seed)) for seed in (0, 1)]
    together = [begin(seed) for seed in (0, 1)]
    assert [end(step) for step in together] == alone
    assert alone[0] != alone[1]


def test_the_pretrained_weights_come_back_from_a_checkpoint(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    policy = make_policy("ewc")
    assert policy.reference is not None
    optimizer = build_optimizer(policy)
    for seed in range(3):
        training_step(policy, optimizer, make_batch(seed=seed))
    policy.save_pretrained(tmp_path)
    restored = AegisPolicy.from_pretrained(tmp_path)
    assert restored.reference is not None
    assert all(torch.equal(restored.reference[name], p0) for name, p0 in policy.reference.items())
    moved = [
        name
        for name, p in restored.vlm.model.named_parameters()
        if name in restored.reference and not torch.equal(p, restored.reference[name])
    ]
    assert len(moved) == len(policy.reference), "the reference is the pretrained model, not the checkpoint"
    (tmp_path / "pretrained_weights.safetensors").unlink()
    with pytest.raises(AegisError, match=r"holds no pretrained_weights\.safetensors"):
        AegisPolicy.from_pretrained(tmp_path)


def test_a_part_that_begins_to_learn_after_a_checkpoint_has_no_pretrained_weights(
    make_policy: MakePolicy, tmp_path: Path
) -> None:
    make_policy("l2_sp").save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=["--train_projector=true"])
    policy = AegisPolicy.from_pretrained(tmp_path, config=config)
    with pytest.raises(AegisError, match=r"pretrained value of .*projector.* more.*--policy.train_projector"):
        policy.get_optim_params()


def test_adapters_travel_in_the_checkpoint_and_merge_to_the_same_answers(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    policy = make_policy("lora", lora_rank=4, optimizer_lr_backbone=1e-2)
    optimizer = build_optimizer(policy)
    for seed in range(3):
        training_step(policy, optimizer, make_batch(seed=seed))
    images = list(np.random.default_rng(1).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8))
    inputs = policy.vlm.question_inputs(images, ["what is it"] * 3)

    def states(vlm: VLMBackbone) -> torch.Tensor:
        with torch.no_grad():
            return vlm.eval().encode(inputs).hidden_states[-1]

    policy.save_pretrained(tmp_path / "policy")
    assert torch.equal(states(AegisPolicy.from_pretrained(tmp_path / "policy").vlm), states(policy.vlm))
    policy.vlm.save_pretrained(tmp_path / "vlm")
    plain = VLMBackbone.from_pretrained(tmp_path / "vlm")
    assert not any("lora" in name for name, _ in plain.named_parameters())
    torch.testing.assert_close(states(plain), states(policy.vlm), rtol=1e-4, atol=1e-5)
    untrained = make_policy("lora", lora_rank=4)
    assert not torch.allclose(states(untrained.vlm), states(policy.vlm), atol=1e-3)


def test_adapters_begin_beside_the_weights_of_a_trained_policy(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    trained = make_policy("none", optimizer_lr_backbone=1e-2)
    optimizer = build_optimizer(trained)
    for seed in range(2):
        training_step(trained, optimizer, make_batch(seed=seed))
    trained.save_pretrained(tmp_path / "trained")
    config = PreTrainedConfig.from_pretrained(tmp_path / "trained", cli_overrides=["--protection=lora"])
    policy = AegisPolicy.from_pretrained(tmp_path / "trained", config=config)
    noise = torch.randn(4, policy.config.chunk_size, policy.config.action_dim)
    torch.testing.assert_close(
        policy.predict_action_chunk(make_batch(), noise), trained.predict_action_chunk(make_batch(), noise)
    )
    before = {name: p.detach().clone() for name, p in policy.vlm.named_parameters()}
    optimizer = build_optimizer(policy.train())
    for seed in range(2):
        training_step(policy, optimizer, make_batch(seed=seed))
    moved = {name for name, p in policy.vlm.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(".lora_" in name for name in moved)
    policy.save_pretrained(tmp_path / "adapted")
    again = AegisPolicy.from_pretrained(tmp_path / "adapted")
    for name, parameter in again.vlm.named_parameters():
        assert torch.equal(parameter, dict(policy.vlm.named_parameters())[name]), name


def test_adapters_that_a_checkpoint_has_lost_are_not_made_anew(
    make_policy: MakePolicy, tmp_path: Path
) -> None:
    make_policy("lora", lora_rank=4).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: each for name, each in weights.items() if ".lora_" not in name}, tmp_path / "lost")
    (tmp_path / "lost").replace(tmp_path / "model.safetensors")
    with pytest.raises(AegisError, match=r"model\.safetensors"):
        AegisPolicy.from_pretrained(tmp_path)


@pytest.mark.parametrize("protection", ["w2_penalty", "l2_sp", "ewc"])
def test_a_penalty_is_in_the_loss_whatever_optimizer_steps(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str
) -> None:
    policy = make_policy(protection, penalty=10.0)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    training_step(policy, optimizer, make_batch())
    loss, figures = policy(make_batch())
    name = "gaussian_anchor_distance" if protection == "w2_penalty" else "weight_penalty"
    strength = 10.0 if protection == "w2_penalty" else 1.0
    assert loss.item() == pytest.approx(figures["flow_loss"] + strength * figures[name], rel=1e-4)
    assert figures[name] > 0
