"""LeRobot's own policies under a protection: what learns, what does not, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.policies.pi0_fast.modeling_pi0_fast import PI0FastPolicy
from lerobot.policies.rtc import RTCConfig
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from scipy.fft import dct
from tiny_vlas import PI_TYPES, TYPES, random_batch, train
from torch import nn
from torch._dynamo.utils import counters

from aegis_eval.checkpoints import load_vla
from aegis_policy.isolation import LowRankProjector
from aegis_policy.lerobot_vlas.inner import inner_model, parts_of
from aegis_policy.support.errors import AegisError

MakeVLA = Callable[..., Any]
Saved = Callable[..., tuple[Path, Path]]


def weights(policy: Any) -> dict[str, torch.Tensor]:
    """Those of the VLM inside, as they are now."""
    return {name: p.detach().clone() for name, p in inner_model(policy).named_parameters()}


def require_blocked(policy: Any, optimizer: Any, before: dict[str, torch.Tensor], share: float) -> None:
    """See that what is blocked has not moved, to float32, and that the rest of the same weights has.

    Weights in 16 bits are what their masters are, rounded.
    """
    (projector,) = policy.protection.projectors
    assert isinstance(projector, LowRankProjector) and projector.blocks
    policy.eval()  # holds
    names = {id(p): name for name, p in inner_model(policy).named_parameters()}
    learned = 0
    for weight, block in projector.blocks:
        begun = before[names[id(weight)]].float()
        after = optimizer.state[weight].get("master", weight.detach())
        assert torch.equal(after.to(weight.dtype), weight)
        moved = after.float() - begun
        assert block.shape[1] == round(share * weight.shape[1])
        learned += bool(moved.any())
        rounding = torch.finfo(torch.float32).eps * begun.norm()
        assert (moved @ block).norm() < 4 * rounding
    assert learned > len(projector.blocks) / 2, "of the last layer, the expert reads keys and values alone"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*PI_TYPES, "eo1"])
def test_the_vlm_learns_only_outside_its_blocks(
    make_vla: MakeVLA, save_base_and_anchor: Saved, name: str, dtype: str
) -> None:
    base, anchor = save_base_and_anchor(name)
    policy = make_vla(
        f"aegis_{name}", pretrained_path=base, anchor_path=anchor, anchor_share=0.2, dtype=dtype
    )
    before = weights(policy)
    optimizer = train(policy, 13)  # of which the tenth alone is held in the optimizer
    require_blocked(policy, optimizer, before, 0.2)
    learning = {name for name, p in inner_model(policy).named_parameters() if p.requires_grad}
    assert learning <= {f"{layer}.weight" for layer in parts_of(policy, name).linear_layers}
    unprotected = {p.dtype for p in policy.parameters() if p.requires_grad}
    assert torch.bfloat16 in unprotected or dtype == "float32"
    for weight in (p for p in policy.parameters() if p.dtype == torch.bfloat16 and p.grad is not None):
        assert optimizer.state[weight]["master"].dtype == torch.float32


def test_the_vlm_of_smolvla_learns_only_outside_its_blocks(
    make_vla: MakeVLA, save_base_and_anchor: Saved
) -> None:
    base, anchor = save_base_and_anchor("smolvla")
    policy = make_vla("aegis_smolvla", pretrained_path=base, anchor_path=anchor, anchor_share=0.2)
    before = weights(policy)
    optimizer = train(policy, 10)
    require_blocked(policy, optimizer, before, 0.2)
    assert not any("vision" in name for name, p in inner_model(policy).named_parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_blocked_directions_stay_for_a_training_at_its_real_learning_rate(
    make_vla: MakeVLA, save_base_and_anchor: Saved, name: str
) -> None:
    base, anchor = save_base_and_anchor(name)
    policy = make_vla(f"aegis_{name}", pretrained_path=base, anchor_path=anchor)
    before = weights(policy)
    optimizer = train(policy, 200, lr=2.5e-5)
    require_blocked(policy, optimizer, before, 0.07)


@pytest.mark.parametrize("name", TYPES)
def test_without_a_protection_everything_learns_that_lerobot_trains(make_vla: MakeVLA, name: str) -> None:
    theirs = make_vla(name)
    ours = make_vla(f"aegis_{name}", protection="none")
    expected = {n for n, p in theirs.named_parameters() if p.requires_grad}
    (group,) = ours.get_optim_params()
    given = {id(p) for p in group["params"]}
    assert {n for n, p in ours.named_parameters() if id(p) in given} == expected
    batch = random_batch(ours, 0)
    torch.manual_seed(0)
    loss, _ = theirs.train().forward(dict(batch))
    torch.manual_seed(0)
    again, _ = ours.train().forward(dict(batch))
    assert torch.equal(loss, again)


@pytest.mark.parametrize("name", TYPES)
def test_a_frozen_vlm_stays_and_adapters_stand_beside_it(make_vla: MakeVLA, name: str) -> None:
    for protection in ("freeze", "lora") if name != "pi0_fast" else ("lora",):
        policy = make_vla(f"aegis_{name}", protection=protection)
        before = weights(policy)
        train(policy, 3)
        after = weights(policy)
        adapters = {key for key in after if "lora_" in key}
        assert bool(adapters) == (protection == "lora")
        for key in after.keys() - adapters:
            assert torch.equal(after[key], before[key.replace(".base_layer", "")]), key
        assert all(after[key].any() for key in adapters if "layers.0" in key)


@pytest.mark.parametrize(
    ("protection", "strength"), [("l2_sp", 1e4), ("ewc", 1e4), ("decoupled_l2_sp", 1e3), ("maps", 3.0)]
)
@pytest.mark.parametrize("name", TYPES)
def test_a_penalty_draws_weights_back(
    make_vla: MakeVLA, save_base_and_anchor: Saved, name: str, protection: str, strength: float
) -> None:
    base, anchor = save_base_and_anchor(name)
    options = {"anchor_path": anchor} if protection == "ewc" else {}

    def moved(penalty: float) -> float:
        policy = make_vla(
            f"aegis_{name}", pretrained_path=base, protection=protection, penalty=penalty, **options
        )
        before = weights(policy)
        train(policy, 6, lr=1e-3)
        return float(sum((p - before[key]).square().sum() for key, p in weights(policy).items()))

    assert moved(strength) < 0.8 * moved(0)


def test_words_of_a_chunk_are_read_as_no_other_number_of_actions(make_vla: MakeVLA) -> None:
    chunk_HA = np.stack([np.linspace(0, 1, 8), np.sin(np.arange(8.0))], axis=1)
    words_HA = np.around(dct(chunk_HA, axis=0, norm="ortho") * 100).astype(int)
    least = int(words_HA.min())
    spoken = "".join(chr(word - least) for word in words_HA.flat)
    tokenizer = SimpleNamespace(decode=lambda _: spoken)
    reader: Any = SimpleNamespace(
        action_tokenizer=SimpleNamespace(bpe_tokenizer=tokenizer, min_token=least, scale=100)
    )
    whole, fewer = (
        PI0FastPolicy.decode_actions_with_fast(reader, [[0]], time_horizon=count, action_dim=2)[0]
        for count in (8, 2)
    )
    np.testing.assert_allclose(whole, chunk_HA, atol=0.02)
    assert np.abs(fewer - chunk_HA[:2]).max() > 0.3, "LeRobot reads fewer rightly: refuse them no longer"
    with pytest.raises(AegisError, match=r"n_action_steps=2 must be --policy\.chunk_size=4"):
        make_vla("aegis_pi0_fast", n_action_steps=2)
    with pytest.raises(AegisError, match=r"use_relative_actions=true does not go with aegis_pi0_fast"):
        make_vla("aegis_pi0_fast", use_relative_actions="true")


def test_what_cannot_be_protected_is_refused(
    make_vla: MakeVLA, save_base_and_anchor: Saved, tmp_path: Path
) -> None:
    base, anchor = save_base_and_anchor("pi05")
    for flags, sentence in (
        ({"anchor": "gaussian"}, "aegis with --policy.anchor=gaussian asks for more than weights"),
        ({"protection": "replay"}, "replay asks for more than weights"),
        ({"protection": "freeze", "train_expert_only": "true"}, "train_expert_only=true is"),
        ({"protection": "freeze", "anchor_share": "0.1"}, "anchor_share changes nothing"),
    ):
        with pytest.raises(Exception, match=sentence):
            make_vla("aegis_pi05", **flags)
    with pytest.raises(AegisError, match="freeze leaves nothing of aegis_pi0_fast to learn"):
        make_vla("aegis_pi0_fast", protection="freeze").get_optim_params()
    with pytest.raises(
        AegisError, match=f"needs the anchor of {base}: make it with aegis-anchor --policy.path={base}"
    ):
        make_vla("aegis_pi05", pretrained_path=base).get_optim_params()
    with pytest.raises(
        AegisError, match=r"is a policy of type pi05, and --policy.type=aegis_pi0 takes a pi0"
    ):
        make_vla("aegis_pi0", pretrained_path=base)
    with pytest.raises(AegisError, match="was made from weights"):
        policy = make_vla("aegis_pi05", pretrained_path=base, anchor_path=anchor)
        nn.init.normal_(parts_of(policy, "x").decoder_layers[0].self_attn.q_proj.weight)
        policy.get_optim_params()


def test_weights_that_lerobot_did_not_load_are_seen(make_vla: MakeVLA, tmp_path: Path) -> None:
    base, file = tmp_path / "base", tmp_path / "base" / "model.safetensors"
    make_vla("pi05").save_pretrained(base)
    weights = load_file(file)
    head, words = (
        next(key for key in weights if part in key) for part in ("paligemma.lm_head", "embed_tokens")
    )
    save_file({key: x for key, x in weights.items() if key != words}, file)
    policy = make_vla("aegis_pi05", pretrained_path=base, protection="none")
    found = dict(policy.named_parameters())
    assert torch.equal(found[words], weights[head]), "openpi wrote one of the two"

    save_file({key: x for key, x in weights.items() if "q_proj" not in key}, file)
    for read in (lambda: make_vla("aegis_pi05", pretrained_path=base), lambda: load_vla(str(base))):
        with pytest.raises(AegisError, match=r"did not give .*q_proj"):
            read()
    file.write_bytes(b"junk")
    for read in (lambda: make_vla("aegis_pi05", pretrained_path=base), lambda: load_vla(str(base))):
        with pytest.raises(AegisError, match="cannot be read"):
            read()


def test_adapters_of_peft_are_refused(make_vla: MakeVLA) -> None:
    policy = make_vla("aegis_smolvla", protection="freeze")
    get_peft_model(policy, LoraConfig(target_modules=r".*lm_expert.*q_proj"))
    with pytest.raises(AegisError, match=r"--peft.\* and aegis_smolvla do not go together"):
        policy.get_optim_params()


def test_an_optimizer_that_knows_nothing_of_it_is_refused(
    make_vla: MakeVLA, save_base_and_anchor: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, anchor = save_base_and_anchor("smolvla")
    policy = make_vla("aegis_smolvla", pretrained_path=base, anchor_path=anchor).train()
    for prepare in (lambda: None, policy.get_optim_params):
        prepare()
        with pytest.raises(AegisError, match="this run's optimizer knows nothing of it"):
            policy.forward(random_batch(policy, 0))
    policy.eval().forward(random_batch(policy, 0))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(AegisError, match="sharded"):
        policy.get_optim_params()


@pytest.mark.parametrize("name", ["smolvla", "pi0", "pi05"])
def test_chunks_go_on_from_what_is_left_over_under_protection(
    make_vla: MakeVLA, save_base_and_anchor: Saved, name: str
) -> None:
    base, anchor = save_base_and_anchor(name)
    policy = make_vla(f"aegis_{name}", pretrained_path=base, anchor_path=anchor)
    train(policy, 1)
    policy.eval()
    policy.config.rtc_config = RTCConfig(execution_horizon=4)  # as a rollout does
    policy.init_rtc_processor()
    batch = random_batch(policy, 1)
    noise = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    left_over = torch.full((2, 4, 8), 3.0)
    plain = policy.predict_action_chunk(batch, noise=noise)
    guided = policy.predict_action_chunk(
        batch, noise=noise, inference_delay=1, prev_chunk_left_over=left_over
    )
    width = plain.shape[-1]
    before, after = ((each[0] - left_over[0, :, :width]).abs().mean(1) for each in (plain, guided))
    assert after[0] < 0.2 * before[0] and after[1] < before[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smolvla", *PI_TYPES])
def test_a_compiled_policy_learns_and_acts_under_protection(
    make_vla: MakeVLA, save_base_and_anchor: Saved, name: str
) -> None:
    base, anchor = save_base_and_anchor(name)
    flags = {"pretrained_path": base, "anchor_path": anchor}
    compiled = make_vla(f"aegis_{name}", **flags, compile_model="true", compile_mode="default")
    plain = make_vla(f"aegis_{name}", **flags)
    before = weights(compiled)
    counters.clear()
    optimizer = train(compiled, 11)
    assert counters["stats"]["unique_graphs"], "it was compiled"
    require_blocked(compiled, optimizer, before, compiled.config.anchor_share)
    plain.load_state_dict(compiled.state_dict())
    noise = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    chunks = [
        policy.eval().predict_action_chunk(random_batch(policy, 1), noise=noise)
        for policy in (compiled, plain)
    ]
    torch.testing.assert_close(*chunks, atol=1e-4, rtol=1e-4)
