"""Factors, blocks and the projector that keeps what is blocked where it is."""

import copy

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from aegis_policy.isolation import (
    Anchor,
    FactorAccumulator,
    GradientIsolator,
    LowRankProjector,
    ProjectedAdamW,
    select_blocks,
)

SHARE = 1.0


def linears(setting):
    return {
        f"{depth}.{name}": module
        for depth, layer in enumerate(setting.model.layers)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }


def gather(setting):
    accumulator = FactorAccumulator(linears(setting), SHARE)
    with torch.no_grad(), accumulator.collect(setting.mask_BT):
        setting.model(setting.x_BTD)
    return accumulator


def train(setting, *projectors, steps=20, **adamw):
    optimizer = ProjectedAdamW(setting.model.parameters(), *projectors, **({"lr": 1e-2} | adamw))
    for _ in range(steps):
        optimizer.zero_grad()
        setting.task_loss().backward()
        optimizer.step()
    return optimizer


def test_factors_are_the_covariances_of_inputs(setting):
    accumulator = gather(setting)
    layer = setting.model.layers[0]
    factors = accumulator.factors()["0.up"]
    x_ND = layer.norm(setting.x_BTD)[setting.mask_BT]
    mean_DD = (x_ND.T @ x_ND / len(x_ND)).detach()
    rebuilt = factors.inputs.vectors_DK * factors.inputs.values_K @ factors.inputs.vectors_DK.T
    torch.testing.assert_close(rebuilt, mean_DD, rtol=1e-4, atol=1e-4)


def test_gathering_continues_from_its_state(setting):
    whole, half, rest = (FactorAccumulator(linears(setting), SHARE) for _ in range(3))
    with torch.no_grad():
        for accumulator, rows in ((half, slice(0, 2)), (whole, slice(0, 2)), (whole, slice(2, 4))):
            with accumulator.collect(setting.mask_BT[rows]):
                setting.model(setting.x_BTD[rows])
        rest.load_state(copy.deepcopy(half.state()))
        with rest.collect(setting.mask_BT[2:]):
            setting.model(setting.x_BTD[2:])
    for name, factors in whole.factors().items():
        torch.testing.assert_close(rest.factors()[name].inputs.values_K, factors.inputs.values_K)


def test_a_layer_that_never_ran_is_named(setting):
    accumulator = FactorAccumulator(linears(setting))
    with pytest.raises(ValueError, match=r"Layer 0\.up never ran"):
        accumulator.factors()


def test_a_layer_that_another_module_reads_without_running_it_is_named():
    attention, x_BTD = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 3, 8)
    accumulator = FactorAccumulator({"out": attention.out_proj})
    with accumulator.collect():
        attention(x_BTD, x_BTD, x_BTD)[0].sum().backward()
    with pytest.raises(ValueError, match=r"Layer out never ran .*MultiheadAttention"):
        accumulator.factors()


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 8, 3), nn.Embedding(10, 8), nn.LayerNorm(8)])
def test_a_layer_that_is_not_linear_is_named(layer):
    with pytest.raises(ValueError, match=f"Layer a is {type(layer).__name__}, and only linear"):
        FactorAccumulator({"a": layer})


@pytest.mark.parametrize("share", [0, 1.1])
def test_a_share_out_of_range_is_named(setting, share):
    with pytest.raises(ValueError, match=f"share={share} must lie between 0 and 1"):
        FactorAccumulator(linears(setting), share)


def stray(projector, step):
    """Have the projector hold what moves by `step` beside it."""
    (weight,) = projector.protected
    projector.remember()
    with torch.no_grad():
        weight += step
    projector.hold_()


def test_holding_is_the_projection_of_the_step_in_float64():
    torch.manual_seed(0)
    layer = nn.Linear(8, 6, bias=False)
    U = torch.linalg.qr(torch.randn(8, 3)).Q
    before, change = layer.weight.detach().clone(), torch.randn(6, 8)
    expected = change.double() - change.double() @ U.double() @ U.T.double()
    projector = LowRankProjector({"0": layer}, {"0": U})
    stray(projector, change)
    torch.testing.assert_close((layer.weight - before).double(), expected, rtol=1e-5, atol=1e-6)
    share = (change.double() - expected).square().sum() / change.double().square().sum()
    assert projector.metrics()["blocked_energy"] == pytest.approx(float(share), rel=1e-5)


def test_the_blocked_energy_of_a_wide_weight_is_measured_on_a_few_rows():
    torch.manual_seed(0)
    layer, U = nn.Linear(64, 500, bias=False), torch.linalg.qr(torch.randn(64, 16)).Q
    projector = LowRankProjector({"0": layer}, {"0": U})
    stray(projector, torch.randn(500, 64))
    assert projector.metrics()["blocked_energy"] == pytest.approx(0.25, abs=0.05)
    projector.hold_()
    assert projector.metrics()["blocked_energy"] == pytest.approx(0.25, abs=0.05), "nothing moved since"


def test_a_subspace_block_keeps_the_outputs_on_inputs_in_its_span(setting):
    factors = gather(setting).factors()
    blocks = select_blocks(factors, 0.3)
    before = {name: layer.weight.detach().clone() for name, layer in linears(setting).items()}
    projector = LowRankProjector(linears(setting), blocks)
    assert train(setting, projector, weight_decay=0.1).projectors == (projector,)
    assert 0 < projector.metrics()["blocked_energy"] < 1
    for name, layer in linears(setting).items():
        moved = layer.weight.detach() - before[name]
        assert moved.norm() > 1e-2
        inside = (moved @ blocks[name]).norm() / moved.norm()
        assert inside < 1e-5, "neither momentum, preconditioner nor weight decay moved it"


def strayed(setting, blocks, before):
    """How far outputs on blocked directions are from what they were, relative to the whole weight's way: the most."""
    return max(
        float((moved @ block).norm() / moved.norm())
        for name, block in blocks.items()
        if (moved := linears(setting)[name].weight.detach() - before[name]).norm() > 0
    )


def test_nothing_adds_up_over_a_long_training(setting):
    blocks = select_blocks(gather(setting).factors(), 0.3)
    before = {name: layer.weight.detach().clone() for name, layer in linears(setting).items()}
    train(setting, LowRankProjector(linears(setting), blocks), steps=500, weight_decay=0.1)
    assert strayed(setting, blocks, before) < 1e-6


def test_held_in_one_of_several_steps_weights_stray_by_those_steps_and_come_back(setting):
    blocks = select_blocks(gather(setting).factors(), 0.3)
    before = {name: layer.weight.detach().clone() for name, layer in linears(setting).items()}
    projector = LowRankProjector(linears(setting), blocks, every=4)
    optimizer = ProjectedAdamW(setting.model.parameters(), projector, lr=1e-3)
    away = []
    for _ in range(10):
        optimizer.zero_grad()
        setting.task_loss().backward()
        optimizer.step()
        away.append(strayed(setting, blocks, before))
        for name, block in blocks.items():
            inside = (linears(setting)[name].weight.detach() - before[name]) @ block
            assert inside.abs().max() < 4 * 1.1e-3 * block.abs().sum(0).max(), "of AdamW's steps"
    assert [share < 1e-5 for share in away] == [step % 4 == 0 for step in range(1, 11)]
    projector.hold_()
    assert strayed(setting, blocks, before) < 1e-5


def test_a_training_that_goes_on_from_a_checkpoint_holds_the_pretrained_outputs_in_the_same_steps(
    make_setting,
):
    def parts(setting):
        blocks = select_blocks(gather(make_setting()).factors(), 0.3)
        projector = LowRankProjector(linears(setting), blocks, every=4)
        return blocks, projector, ProjectedAdamW(setting.model.parameters(), projector, lr=1e-2)

    def steps(setting, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            setting.task_loss().backward()
            optimizer.step()

    whole, resumed = make_setting(), make_setting()
    before = {name: layer.weight.detach().clone() for name, layer in linears(whole).items()}
    blocks, projector, optimizer = parts(whole)
    steps(whole, optimizer, 6)
    projector.hold_()
    resumed.model.load_state_dict(copy.deepcopy(whole.model.state_dict()))
    state = copy.deepcopy(optimizer.state_dict())
    _, again, continued = parts(resumed)
    continued.load_state_dict(state)
    steps(whole, optimizer, 4)
    steps(resumed, continued, 4)
    for p, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-7)
    again.hold_()
    assert strayed(resumed, blocks, before) < 1e-6


def test_layers_that_read_the_same_inputs_share_their_directions_wherever_they_go():
    layers = {name: nn.Linear(8, 4, bias=False).double() for name in "qkv"}
    vectors = torch.eye(8)[:, :2]
    projector = LowRankProjector(layers, dict.fromkeys(layers, vectors))
    projector.remember()
    kept = [block for _, block in projector.blocks]
    assert kept[0].dtype == torch.float64 and kept[0] is kept[1] is kept[2]


def test_what_no_projector_knows_steps_as_in_plain_adamw(make_setting):
    ours, plain = make_setting(), make_setting()
    factors = gather(ours).factors()
    blocks = select_blocks({"1.up": factors["1.up"]}, 0.3)
    train(ours, LowRankProjector(linears(ours), blocks), steps=1)
    optimizer = torch.optim.AdamW(plain.model.parameters(), lr=1e-2)
    plain.task_loss().backward()
    optimizer.step()
    for (name, p), expected in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(p, expected) == (name != "layers.1.up.weight")


def test_both_kinds_of_projector_act_in_one_step(make_setting):
    """AdamW on gradients projected by hand, and then the blocks taken out of its update by hand."""
    ours, by_hand = make_setting(), make_setting()
    blocks = select_blocks(gather(ours).factors(), 0.3)
    isolators = [GradientIsolator(each.model.layers, each.anchor) for each in (ours, by_hand)]
    projector = LowRankProjector(linears(ours), blocks)
    adamw = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-2}
    optimizer = ProjectedAdamW(ours.model.parameters(), isolators[0], projector, **adamw)
    plain = torch.optim.AdamW(by_hand.model.parameters(), **adamw)
    conflicts = 0.0
    for _ in range(3):
        for each, isolator in zip((ours, by_hand), isolators, strict=True):
            each.model.zero_grad()
            isolator.clear()
            with isolator.collect(each.mask_BT):
                loss = each.task_loss()
            isolator.accumulate()
            loss.backward()
        optimizer.step()
        isolators[1].project_()
        conflicts += isolators[1].metrics()["conflict_fraction"]
        before = {name: layer.weight.detach().clone() for name, layer in linears(by_hand).items()}
        plain.step()
        for name, block in blocks.items():
            weight = linears(by_hand)[name].weight
            change = weight.detach() - before[name]
            weight.data -= change @ block @ block.T
    assert conflicts > 0 and projector.metrics()["blocked_energy"] > 0
    for p, expected in zip(ours.model.parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=0, atol=1e-5)


def test_directions_from_a_file_which_holds_them_rounded_are_made_orthonormal_again(setting, tmp_path):
    Anchor(factors=gather(setting).factors()).save(tmp_path / "anchor.safetensors")
    factors = Anchor.load(tmp_path / "anchor.safetensors").factors
    blocks = select_blocks(factors, 0.5)
    assert len(blocks) > 1
    for name, block in blocks.items():
        kept, held = block.double(), factors[name].inputs.vectors_DK.double()
        gram = kept.T @ kept
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-6)
        assert (held.T @ kept).norm(dim=0).min() > 0.999, "and still span the directions of the file"


def test_products_are_whole_while_weights_are_held(setting):
    """A trainer that allows TF32 would leave a thousandth in; afterwards it has its own precision again."""
    seen = []

    class Watched(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func.__name__ in ("matmul", "__matmul__", "addmm_"):
                seen.append(torch.get_float32_matmul_precision())
            return func(*args, **(kwargs or {}))

    weight = setting.model.layers[0].up.weight
    weight.grad = torch.ones_like(weight)
    projector = LowRankProjector(linears(setting), {"0.up": torch.eye(8)})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with Watched():
            projector.remember()
            projector.hold_()
            projector.blocked_share(lambda p: p.grad)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest"] * 4


def test_bfloat16_weights_are_blocked_to_their_own_precision(setting):
    factors = gather(setting).factors()
    blocks = select_blocks({"0.up": factors["0.up"]}, 0.3)
    setting.model.to(torch.bfloat16)
    weight = setting.model.layers[0].up.weight
    weight.grad = torch.randn_like(weight)
    before = weight.detach().float()
    ProjectedAdamW([weight], LowRankProjector(linears(setting), blocks), lr=1e-2).step()
    moved = weight.detach().float() - before
    assert (moved @ blocks["0.up"]).norm() < 0.2 * moved.norm()


@pytest.mark.parametrize(
    ("name", "block", "complaint"),
    [
        ("9.up", torch.eye(8), r"9\.up, which are no layers"),
        ("0.up", torch.eye(5), "block of 0.up is for a weight of 5 inputs, but it has 8"),
    ],
)
def test_blocks_of_another_model_are_refused(setting, name, block, complaint):
    with pytest.raises(ValueError, match=complaint):
        LowRankProjector(linears(setting), {name: block})


def test_nothing_that_learns_is_an_error(setting):
    setting.model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to protect"):
        LowRankProjector(linears(setting), {"0.up": torch.eye(8)})


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e25])
def test_shares_of_any_gradient_are_finite(setting, scale):
    block = torch.eye(8)[:, :2]
    projector = LowRankProjector(linears(setting), {"0.up": block})
    gradient = scale * torch.ones(16, 8)
    assert float(projector.blocked_share(lambda p: gradient)) == pytest.approx(0.25 if scale else 0.0)
    with pytest.raises(ValueError, match="reaches none of the blocked weights"):
        projector.blocked_share(lambda p: None)


class _Attention(nn.Module):
    """Queries and keys of the same tensor, values of another; the second call may change that."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x_ND, apart=False):
        return self.q(x_ND) + self.k(x_ND.clone() if apart else x_ND) + self.v(2 * x_ND)


def test_layers_that_read_the_same_tensor_share_one_sketch_and_one_spectrum(setting):
    attention, x_ND = _Attention(), torch.randn(30, 8)
    accumulator = FactorAccumulator(dict(attention.named_children()), SHARE)
    for part in x_ND.split(10):
        with accumulator.collect():
            attention(part)
            attention(part)
    kept = {key.split(".")[1] for key in accumulator.state() if key.startswith("inputs.")}
    assert kept == {"q", "v"}
    continued = FactorAccumulator(dict(attention.named_children()), SHARE)
    continued.load_state(accumulator.state())
    for factors in (accumulator.factors(), continued.factors()):
        assert factors["k"].inputs is factors["q"].inputs
        torch.testing.assert_close(factors["v"].inputs.values_K, 4 * factors["q"].inputs.values_K)
        total = x_ND.square().sum() / len(x_ND)
        torch.testing.assert_close(factors["q"].inputs.total, total)


def test_layers_that_share_their_input_in_some_passes_alone_are_named():
    attention, x_ND = _Attention(), torch.randn(30, 8)
    accumulator = FactorAccumulator(dict(attention.named_children()))
    with accumulator.collect():
        attention(x_ND)
    with pytest.raises(ValueError, match="k reads the same input as q in one pass and as k in another"):
        with accumulator.collect():
            attention(x_ND, apart=True)


def test_a_tensor_that_was_written_to_in_between_is_another_input():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    accumulator = FactorAccumulator({"first": first, "second": second}, SHARE)
    with torch.no_grad(), accumulator.collect():
        x_ND = torch.randn(30, 8)
        first(x_ND)
        second(x_ND.mul_(2))
    factors = accumulator.factors()
    torch.testing.assert_close(factors["second"].inputs.values_K, 4 * factors["first"].inputs.values_K)
