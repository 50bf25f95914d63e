"""What each protection lets the flow loss do to the backbone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aegis_eval.anchor import build_anchor
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.errors import AegisError
from aegis_policy.isolation import GradientIsolator, LowRankProjector, ProjectedAdamW
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.protections import PROTECTIONS
from aegis_policy.vlm import NO_LABEL, VLMBackbone
from aegis_policy.vqa_data import VQAExample

MakePolicy = Callable[..., AegisPolicy]
MakeBatch = Callable[..., dict[str, Any]]


def _optimizer(policy: AegisPolicy) -> torch.optim.Optimizer:
    return policy.config.get_optimizer_preset().build(policy.get_optim_params())


def _step(policy: AegisPolicy, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> dict[str, float]:
    loss, figures = policy.train()(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return figures


def _flat_gradients(isolator: GradientIsolator) -> list[torch.Tensor]:
    return [
        torch.cat([p.grad.flatten() for p in layer if p.grad is not None]) for layer in isolator.parameters
    ]


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_gradient_reaches_every_layer_that_is_read_or_none(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str
) -> None:
    policy = make_policy(protection)
    _optimizer(policy)
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
    optimizer = _optimizer(policy)
    for seed in range(2):
        _step(policy, optimizer, make_batch(seed=seed))
    changed = {name for name, p in policy.vlm.named_parameters() if not torch.equal(p, before[name])}
    layers = {name for name in before if "language_model.layers." in name}
    if protection == "lora":
        layers = {name for name in layers if "lora_" in name}
    if protection == "knowledge_insulation":
        layers |= {name for name in before if name.endswith("embed_tokens.weight")}
    assert changed == (set() if protection in ("freeze", "stop_gradient") else layers)


@pytest.mark.parametrize("part", ["vision_tower", "projector"])
@pytest.mark.parametrize("protection", ["none", "freeze", "aegis"])
def test_tower_and_projector_train_when_asked(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str, part: str
) -> None:
    policy = make_policy(protection, **{f"train_{part}": True})
    _optimizer(policy)
    policy.train()(make_batch())[0].backward()
    grads = [p.grad for p in getattr(policy.vlm, part).parameters()]
    assert any(grad is not None and grad.any() for grad in grads)


def test_stop_gradient_refuses_to_train_the_tower(make_config: Callable[..., AegisConfig]) -> None:
    with pytest.raises(AegisError, match=r"stop_gradient lets no gradient into the VLM.*train_vision_tower"):
        make_config("stop_gradient", train_vision_tower=True)


def test_unknown_protection_is_answered_with_the_known_ones(make_config: Callable[..., AegisConfig]) -> None:
    with pytest.raises(
        AegisError, match=r"--policy.protection=prayer is unknown.*none, freeze, stop_gradient, .*aegis"
    ):
        make_config("prayer")


def test_projected_gradients_are_orthogonal_to_the_anchor_gradient_or_untouched(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("aegis")
    optimizer = _optimizer(policy)
    assert isinstance(optimizer, ProjectedAdamW)
    (isolator,) = policy.protection.projectors
    assert isinstance(isolator, GradientIsolator)
    conflicts = 0
    for seed in range(6):
        loss, _ = policy.train()(make_batch(seed=seed))
        loss.backward()
        anchors = [torch.cat([g.flatten() for g in layer]) for layer in isolator._anchor_grads.reduce()]
        before = _flat_gradients(isolator)
        isolator.project_()
        for task, projected, anchor in zip(before, _flat_gradients(isolator), anchors, strict=True):
            if torch.dot(task.double(), anchor.double()) < 0:
                conflicts += 1
                assert abs(torch.cosine_similarity(projected.double(), anchor.double(), dim=0)) <= 1e-6
            else:
                assert torch.equal(task, projected)
        isolator.clear()
        optimizer.zero_grad()
    assert 0 < conflicts < 6 * policy.vlm.num_layers


LOW_RANK = ["subspace", "kronecker", "subspace+kronecker"]


@pytest.mark.parametrize("anchor", LOW_RANK)
def test_with_blocks_only_linear_weights_learn(
    make_policy: MakePolicy, make_batch: MakeBatch, anchor: str
) -> None:
    policy = make_policy("aegis", anchor=anchor, train_vision_tower=True, train_projector=True)
    before = {name: p.detach().clone() for name, p in policy.vlm.model.named_parameters()}
    optimizer = _optimizer(policy)
    figures = [_step(policy, optimizer, make_batch(seed=seed)) for seed in range(3)]
    changed = {name for name, p in policy.vlm.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"{name}.weight" for name in policy.vlm.linear_layers}
    blocked = [name for name in figures[2] if name.endswith("blocked_energy")]
    assert len(blocked) == len(policy.protection.projectors)
    assert all(figures[0][name] == 0.0 < figures[2][name] < 1 for name in blocked)


@pytest.mark.parametrize("anchor", LOW_RANK)
def test_blocked_components_stay_while_the_rest_learns(
    make_policy: MakePolicy, make_batch: MakeBatch, anchor: str
) -> None:
    policy = make_policy("aegis", anchor=anchor, anchor_energy=0.7)
    before = {name: layer.weight.detach().clone() for name, layer in policy.vlm.linear_layers.items()}
    optimizer = _optimizer(policy)
    for seed in range(5):
        _step(policy, optimizer, make_batch(seed=seed))
    for projector in policy.protection.projectors:
        assert isinstance(projector, LowRankProjector)
        names = {id(layer.weight): name for name, layer in policy.vlm.linear_layers.items()}
        for weight, block in projector._blocks:
            moved = weight.detach() - before[names[id(weight)]]
            inside = moved @ block.input_vectors_DK
            if block.output_vectors_EJ is not None:
                inside = block.strength * (block.output_vectors_EJ.T @ inside)
            assert inside.norm() < 1e-3 * moved.norm()


def test_answers_to_the_anchors_questions_move_less_than_unprotected(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    """On the questions that the anchor was made of, the loss of the model's own answers."""
    rng = np.random.default_rng(1)
    images = list(rng.integers(0, 255, (16, 32, 32, 3), dtype=np.uint8))
    questions = ["what colour is the cube"] * 16

    def change(protection: str, **options: Any) -> float:
        policy = make_policy(protection, optimizer_lr_backbone=1e-3, **options)
        with torch.no_grad():
            inputs = policy.vlm.answer_inputs(images, questions, policy.vlm.answer(images, questions))
            before, labels = policy.vlm.answer_logits(inputs)
            optimizer = _optimizer(policy)
        for seed in range(5):
            _step(policy, optimizer, make_batch(seed=seed))
        with torch.no_grad():
            after, _ = policy.vlm.answer_logits(inputs)
        return float((after - before)[labels != NO_LABEL].square().mean())

    free = change("none")
    assert change("aegis", anchor="subspace", anchor_energy=0.99) < 0.2 * free
    assert change("aegis", anchor="kronecker", anchor_energy=0.99) < 0.2 * free


@pytest.mark.parametrize(
    ("protection", "figure"),
    [("w2_penalty", "anchor_distance"), ("l2_sp", "weight_penalty"), ("ewc", "weight_penalty")],
)
def test_a_strong_penalty_holds_the_backbone(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str, figure: str
) -> None:
    """What the penalty is about stays smaller than with a penalty of nothing."""

    def last(penalty: float) -> float:
        policy = make_policy(protection, penalty=penalty, optimizer_lr_backbone=1e-3)
        start = {name: p.detach().clone() for name, p in policy.vlm.decoder_layers.named_parameters()}
        optimizer = _optimizer(policy)
        for seed in range(15):
            figures = _step(policy, optimizer, make_batch(seed=seed % 3))
        if protection == "w2_penalty":
            return figures[figure]
        assert (figures[figure] > 0) == (penalty > 0)
        return sum(
            float((p.detach() - start[name]).square().sum())
            for name, p in policy.vlm.decoder_layers.named_parameters()
        )

    assert last(100.0) < 0.8 * last(0.0)


def test_the_pretrained_weights_come_back_from_a_checkpoint(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    policy = make_policy("ewc")
    assert policy.reference is not None
    optimizer = _optimizer(policy)
    for seed in range(3):
        _step(policy, optimizer, make_batch(seed=seed))
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
    with pytest.raises(AegisError, match=r"pretrained_weights\.safetensors is not readable"):
        AegisPolicy.from_pretrained(tmp_path)


def test_adapters_travel_in_the_checkpoint_and_merge_to_the_same_answers(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    policy = make_policy("lora", lora_rank=4, optimizer_lr_backbone=1e-2)
    optimizer = _optimizer(policy)
    for seed in range(3):
        _step(policy, optimizer, make_batch(seed=seed))
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


@pytest.mark.parametrize(("protection", "penalty"), [("none", 1.0), ("aegis", 1.0), ("l2_sp", -1.0)])
def test_a_penalty_where_there_is_none_is_refused(
    make_config: Callable[..., AegisConfig], protection: str, penalty: float
) -> None:
    with pytest.raises(AegisError, match=r"--policy.penalty(=.* must not be negative| changes nothing with)"):
        make_config(protection, penalty=penalty)


@pytest.mark.parametrize(
    ("protection", "option"),
    [
        ("none", {"anchor": "kronecker"}),
        ("none", {"anchor_path": Path("anchor.safetensors")}),
        ("aegis", {"lora_rank": 4}),
        ("lora", {"replay_batch_size": 4}),
        ("replay", {"action_bins": 64}),
    ],
)
def test_an_option_of_another_protection_is_refused(
    make_config: Callable[..., AegisConfig], protection: str, option: dict[str, Any]
) -> None:
    (name,) = option
    with pytest.raises(
        AegisError, match=f"--policy.{name} changes nothing with --policy.protection={protection}"
    ):
        make_config(protection, **option)


def test_too_much_energy_for_the_anchors_rank_is_one_sentence(
    make_policy: MakePolicy, tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    pairs = (VQAExample(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), "what is it") for _ in range(8))
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    anchor = build_anchor(vlm, pairs, kinds=["subspace"], source="noise", batch_size=8, rank=2)
    anchor.save(tmp_path / "anchor.safetensors")
    policy = make_policy(
        "aegis", anchor="subspace", anchor_energy=1.0, anchor_path=tmp_path / "anchor.safetensors"
    )
    with pytest.raises(AegisError, match=r"An energy of 1.0 .*subspace.*eigenpairs kept hold"):
        policy.get_optim_params()


@pytest.mark.parametrize(
    ("kinds", "anchor"),
    [(["gaussian"], "subspace"), (["subspace"], "kronecker"), (["kronecker"], "gaussian")],
)
def test_an_anchor_of_another_kind_says_how_to_make_the_right_one(
    make_policy: MakePolicy, tiny_vlm_dir: Path, tmp_path: Path, kinds: list[str], anchor: str
) -> None:
    pairs = (VQAExample(np.zeros((32, 32, 3), dtype=np.uint8), "what is it") for _ in range(2))
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    build_anchor(vlm, pairs, kinds=kinds, source="noise", batch_size=2).save(tmp_path / "anchor.safetensors")
    with pytest.raises(
        AegisError,
        match=rf"--policy.anchor={anchor} needs: rebuild it with aegis-anchor --kinds=\[{anchor}\]",
    ):
        make_policy("aegis", anchor=anchor, anchor_path=tmp_path / "anchor.safetensors")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"anchor": "sheet"}, r"--policy.anchor=sheet is unknown"),
        ({"anchor": "gaussian+sheet"}, r"--policy.anchor=gaussian\+sheet is unknown"),
        ({"anchor": "subspace", "anchor_energy": 0.0}, r"--policy.anchor_energy=0.0"),
        ({"anchor_energy": 0.5}, r"--policy.anchor_energy changes nothing with --policy.anchor=gaussian"),
        ({"anchor_soft": True}, r"--policy.anchor_soft changes nothing with --policy.anchor=gaussian"),
        ({"anchor": "kronecker", "anchor_refresh": 2}, r"--policy.anchor_refresh changes nothing with"),
        ({"anchor_refresh": 0}, r"--policy.anchor_refresh=0"),
        ({"anchor_restoring": -1.0}, r"--policy.anchor_restoring=-1.0"),
        ({"anchor_restoring": 1.0, "project": "update"}, r"--policy.project must stay gradient"),
        ({"project": "weights"}, r"--policy.project=weights is unknown: choose gradient, update"),
        ({"anchor_tokens": "some"}, r"--policy.anchor_tokens=some is unknown: choose together, apart"),
        ({"anchor_momentum": 1.0}, r"--policy.anchor_momentum=1.0"),
        ({"granularity": "neuron"}, r"--policy.granularity=neuron is unknown"),
    ],
)
def test_options_out_of_range_are_refused(
    make_config: Callable[..., AegisConfig], options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(AegisError, match=complaint):
        make_config("aegis", **options)


def test_expert_gradients_are_those_without_protection(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    gradients = []
    for protection in ("none", "aegis"):
        policy = make_policy(protection)
        _optimizer(policy)
        torch.manual_seed(1)
        policy.train()(make_batch())[0].backward()
        gradients.append([p.grad for p in policy.expert.parameters()])
    for free, protected in zip(*gradients, strict=True):
        assert torch.equal(free, protected)


def test_training_logs_the_projection(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy("aegis")
    optimizer = _optimizer(policy)
    figures = [_step(policy, optimizer, make_batch(seed=seed)) for seed in range(3)]
    keys = {
        "flow_loss",
        "anchor_distance",
        "anchor_noise_floor",
        "conflict_fraction",
        "energy_shed",
        "unprojected_layers",
    }
    assert all(set(each) == keys and all(type(v) is float for v in each.values()) for each in figures)
    assert figures[0]["anchor_distance"] > 0


def test_evaluation_of_the_loss_needs_no_optimizer_and_takes_no_anchor_gradient(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("aegis").eval()
    with torch.no_grad():
        _, figures = policy(make_batch())
    assert set(figures) == {"flow_loss"}


def test_checkpointing_changes_neither_gradient(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    results = []
    for checkpointing in (False, True):
        policy = make_policy("aegis", gradient_checkpointing=checkpointing)
        optimizer = _optimizer(policy)
        torch.manual_seed(1)
        policy.train()(make_batch())[0].backward()
        policy.protection.projectors[0].project_()
        results.append([p.grad.clone() for p in policy.vlm.decoder_layers.parameters()])
        optimizer.zero_grad()
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("how", ["plain AdamW over the groups", "policy.parameters()"])
def test_an_optimizer_that_does_not_project_stops_the_run(
    make_policy: MakePolicy, make_batch: MakeBatch, how: str
) -> None:
    policy = make_policy("aegis")
    torch.optim.AdamW(policy.parameters() if how == "policy.parameters()" else policy.get_optim_params())
    with pytest.raises(
        AegisError, match=r"projects gradients in the optimizer's step.*--optimizer.type=aegis_adamw"
    ):
        policy.train()(make_batch())


@pytest.mark.parametrize("protection", ["w2_penalty", "l2_sp", "ewc"])
def test_a_penalty_is_in_the_loss_whatever_optimizer_steps(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str
) -> None:
    policy = make_policy(protection, penalty=10.0)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    _step(policy, optimizer, make_batch())
    loss, figures = policy(make_batch())
    name = "anchor_distance" if protection == "w2_penalty" else "weight_penalty"
    strength = 10.0 if protection == "w2_penalty" else 1.0
    assert loss.item() == pytest.approx(figures["flow_loss"] + strength * figures[name], rel=1e-4)
    assert figures[name] > 0


def test_aegis_adamw_refuses_bare_parameters(make_policy: MakePolicy) -> None:
    policy = make_policy("aegis")
    with pytest.raises(AegisError, match="--use_policy_training_preset"):
        policy.config.get_optimizer_preset().build(policy.parameters())


def test_groups_have_their_own_rates_and_do_not_decay_vectors(make_policy: MakePolicy) -> None:
    policy = make_policy("aegis", optimizer_lr=3e-4, optimizer_lr_backbone=2e-5)
    groups = {group["name"]: group for group in _optimizer(policy).param_groups}
    assert groups["expert"]["lr"] == 3e-4 and groups["backbone_no_decay"]["lr"] == 2e-5
    assert groups["expert"]["weight_decay"] > 0 == groups["expert_no_decay"]["weight_decay"]
    grouped = {id(p) for group in groups.values() for p in group["params"]}
    assert grouped == {id(p) for p in policy.parameters() if p.requires_grad}
    decayed = [p for name in ("expert", "backbone") for p in groups[name]["params"]]
    assert all(p.ndim >= 2 for p in decayed)


def test_every_rate_decays_to_zero_at_the_last_step(make_policy: MakePolicy) -> None:
    policy = make_policy("none", scheduler_warmup_steps=5)
    peak = [policy.config.optimizer_lr, policy.config.optimizer_lr_backbone]
    for steps, warmup in ((60, 5), (30, 3)):
        optimizer = _optimizer(policy)
        scheduler = policy.config.get_scheduler_preset().build(optimizer, num_training_steps=steps)
        rates = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            rates.append([optimizer.param_groups[0]["lr"], optimizer.param_groups[-1]["lr"]])
        assert rates.index(peak) == warmup - 1, "a warm-up takes at most a tenth of the steps"
        assert max(rates[-1]) < 1e-9
        assert all(a / peak[0] == pytest.approx(b / peak[1]) for a, b in rates)


def test_fsdp_is_refused(make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("aegis")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(AegisError, match=r"FSDP.*torchrun"):
        policy.get_optim_params()


def test_float16_is_refused_where_it_would_lose_the_anchor_gradient(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    for anchor in ("gaussian", "subspace"):
        policy = make_policy("aegis", anchor=anchor)
        _optimizer(policy)
        with torch.autocast("cpu", dtype=torch.float16):
            if anchor == "gaussian":
                with pytest.raises(
                    AegisError, match=r"float16 would round it to nothing.*--policy.dtype=bfloat16"
                ):
                    policy.train()(make_batch())
            else:
                policy.train()(make_batch())[0].backward()
