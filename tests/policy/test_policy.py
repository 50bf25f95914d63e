"""The policy as LeRobot calls it: loss, chunks, queue, and what it says when something is wrong."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import PreTrainedPolicy
from training_steps import MakeBatch, MakePolicy, build_optimizer

from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError


def test_loss_is_the_mean_over_valid_action_steps(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy, batch = make_policy("none"), make_batch()
    noise, time = torch.randn_like(batch["action"]), torch.rand(4)
    loss, figures = policy(batch, noise=noise, time=time)
    per_sample, _ = policy(batch, noise=noise, time=time, reduction="none")
    assert per_sample.shape == (4,) and loss.item() == pytest.approx(per_sample.mean().item())
    assert figures == {"flow_loss": pytest.approx(loss.item())}

    single = [
        policy(
            {key: value[i : i + 1] for key, value in batch.items()},
            noise=noise[i : i + 1],
            time=time[i : i + 1],
        )[0]
        for i in range(4)
    ]
    weights = (~batch["action_is_pad"]).sum(1)
    expected = sum(w * each for w, each in zip(weights, single, strict=True)) / weights.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_flow_samples_share_one_encoding_and_average(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy, batch = make_policy("none", flow_samples=3), make_batch()
    torch.nn.init.normal_(policy.expert.to_velocity.weight)
    noise, time = torch.randn(3 * 4, *batch["action"].shape[1:]), torch.rand(3 * 4)
    rounds = [
        policy(batch, noise=noise[i : i + 4], time=time[i : i + 4], reduction="none")[0] for i in (0, 4, 8)
    ]
    encoded = []
    policy.vlm.vision_tower.register_forward_hook(lambda *_: encoded.append(1))
    loss_B, _ = policy(batch, noise=noise, time=time, reduction="none")
    torch.testing.assert_close(loss_B, torch.stack(rounds).mean(0))
    assert len(encoded) == 1
    drawn = []
    policy.expert.register_forward_hook(lambda _module, inputs, _output: drawn.append(inputs[0]))
    policy(batch)
    assert drawn[0].shape[0] == 12 and not torch.equal(drawn[0][:4], drawn[0][4:8])


def test_padded_actions_do_not_touch_the_loss(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy, batch = make_policy("none"), make_batch()
    alone = {**batch, "action_is_pad": torch.ones_like(batch["action_is_pad"])}
    empty, _ = policy(alone)
    assert empty.item() == 0.0
    empty.backward()
    assert not any(p.grad is not None and p.grad.any() for p in policy.parameters())


def test_a_seed_gives_the_same_chunk_and_another_seed_another(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy, batch = make_policy("none"), make_batch()
    chunks = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        chunks.append(policy.predict_action_chunk(batch))
    assert chunks[0].shape == (4, 4, 3)
    assert torch.equal(chunks[0], chunks[1]) and not torch.equal(chunks[0], chunks[2])


def test_a_chunk_follows_the_instruction(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy, batch = make_policy("none"), make_batch()
    noise = torch.randn(4, 4, 3)
    other = {**batch, "task": ["what colour is the sphere"] * 4}
    assert not torch.allclose(
        policy.predict_action_chunk(batch, noise), policy.predict_action_chunk(other, noise), atol=1e-7
    )


def test_a_sample_does_not_depend_on_its_neighbours_padding(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy, batch = make_policy("none"), make_batch()
    noise = torch.randn(4, 4, 3)
    alone = policy.predict_action_chunk({key: value[:1] for key, value in batch.items()}, noise[:1])
    torch.testing.assert_close(alone, policy.predict_action_chunk(batch, noise)[:1])


def test_the_prefix_is_encoded_once_a_chunk(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy, batch = make_policy("none", num_inference_steps=7), make_batch()
    calls = {"encoder": 0, "reader": 0, "block": 0}

    def counter(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[name] += 1

        return count

    policy.vlm.decoder_layers[0].register_forward_hook(counter("encoder"))
    policy.expert.readers[0].register_forward_hook(counter("reader"))
    policy.expert.blocks[0].register_forward_hook(counter("block"))
    policy.predict_action_chunk(batch)
    assert calls == {"encoder": 1, "reader": 1, "block": 7}


def test_a_copy_is_a_policy_of_its_own(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy, batch, noise = make_policy("none"), make_batch(), torch.randn(4, 4, 3)
    copied = copy.deepcopy(policy)
    assert copied.flow_vla.vlm is copied.vlm and copied.flow_vla.expert is copied.expert
    assert {name.split(".")[0] for name in policy.state_dict()} == {"vlm", "expert"}
    before = policy.predict_action_chunk(batch, noise)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(policy.predict_action_chunk(batch, noise), before)
    assert not torch.equal(copied.predict_action_chunk(batch, noise), before)


def test_actions_come_from_a_queue_that_reset_empties(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy, batch = make_policy("none"), make_batch()
    noise = torch.randn(4, 4, 3)
    chunk = policy.predict_action_chunk(batch, noise)
    first, second = policy.select_action(batch, noise), policy.select_action(batch)
    assert torch.equal(first, chunk[:, 0]) and torch.equal(second, chunk[:, 1])
    policy.select_action(batch, noise)
    policy.reset()
    assert torch.equal(policy.select_action(batch, noise), chunk[:, 0])


def test_a_batch_of_another_size_needs_a_reset(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy("none")
    policy.select_action(make_batch(4))
    with pytest.raises(
        AegisError, match=r"batch of 2, in the middle of a chunk of actions for 4: call .*reset"
    ):
        policy.select_action(make_batch(2))
    policy.reset()
    assert policy.select_action(make_batch(2)).shape == (2, 3)


def test_two_threads_share_no_policy_and_what_they_begin_next_is_refused_too(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    """As LeRobot evaluates with --env.max_parallel_tasks=2, with sentences and batches of one length."""
    policy, noise = make_policy("none"), torch.randn(4, 4, 3)
    batches = make_batch(4, seed=0), make_batch(4, seed=1)
    expected = [policy.predict_action_chunk(batch, noise)[:, 0] for batch in batches]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        for thread, batch, action in zip((one, two), batches, expected, strict=True):
            thread.submit(policy.reset).result()
            assert torch.equal(thread.submit(policy.select_action, batch, noise).result(), action)
        for thread, call in [(one, policy.select_action), (two, policy.select_action), (one, policy.reset)]:
            given = () if call == policy.reset else (batches[0], noise)
            with pytest.raises(AegisError, match=r"Two threads .* --env\.max_parallel_tasks=1"):
                thread.submit(call, *given).result()
        policy.reset()
        assert torch.equal(policy.select_action(batches[0], noise), expected[0])
        two.shutdown()
        one.submit(policy.reset).result()
        assert torch.equal(one.submit(policy.select_action, batches[0], noise).result(), expected[0])


def test_a_thread_takes_over_where_another_has_ended(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy, batch, noise = make_policy("none"), make_batch(), torch.randn(4, 4, 3)
    chunk = policy.predict_action_chunk(batch, noise)
    for step in range(2):
        with ThreadPoolExecutor(1) as thread:
            assert torch.equal(thread.submit(policy.select_action, batch, noise).result(), chunk[:, step])


def test_chunks_sampled_in_threads_at_once_are_those_sampled_alone(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    """A policy server's threads ask for chunks, which no queue keeps."""
    policy, noise = make_policy("none"), torch.randn(4, 4, 3)
    batches = [make_batch(4, seed) for seed in range(4)]
    alone = [policy.predict_action_chunk(batch, noise) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda batch: policy.predict_action_chunk(batch, noise), batches * 3))
    for chunk, expected in zip(together, alone * 3, strict=True):
        torch.testing.assert_close(chunk, expected)


@pytest.mark.skipif(
    not hasattr(PreTrainedPolicy, "drop_queued_actions"), reason="this LeRobot drops no queued actions"
)
def test_actions_queued_under_another_instruction_can_be_dropped(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy, batch, noise = make_policy("none"), make_batch(), torch.randn(4, 4, 3)
    policy.select_action(batch, noise)
    policy.drop_queued_actions()
    other = {**batch, "task": ["what colour is the sphere"] * 4}
    assert torch.equal(policy.select_action(other, noise), policy.predict_action_chunk(other, noise)[:, 0])


def test_training_fits_one_batch(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    """The whole of it learns: some steps on one batch with fixed noise and times lower its loss."""
    policy, batch = make_policy("aegis", optimizer_lr=1e-2, optimizer_lr_backbone=1e-3), make_batch()
    optimizer = build_optimizer(policy)
    noise, time = torch.randn_like(batch["action"]), torch.rand(4)
    losses = []
    for _ in range(25):
        loss, _ = policy.train()(batch, noise=noise, time=time)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("frozen", ["float32", "bfloat16"])
def test_a_step_in_bfloat16_is_the_same_whether_or_not_the_trainer_casts(
    make_policy: MakePolicy, make_batch: MakeBatch, frozen: str
) -> None:
    batch, noise, time = make_batch(), torch.randn(4, 4, 3), torch.rand(4)
    gradients = []
    for dtype, trainer_casts in (("bfloat16", False), ("bfloat16", True), ("float32", False)):
        policy = make_policy(
            "aegis", dtype=dtype, frozen_dtype=frozen if dtype == "bfloat16" else dtype
        ).train()
        build_optimizer(policy)
        with torch.autocast("cpu", torch.bfloat16, enabled=trainer_casts):
            loss, _ = policy(batch, noise=noise, time=time)
        loss.backward()
        assert loss.dtype == torch.float32
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    alone, within, exact = gradients
    assert torch.equal(alone, within) and not torch.equal(alone, exact)
    assert torch.cosine_similarity(alone, exact, dim=0) > 0.99


def test_bfloat16_runs_matrix_products_in_bfloat16_and_returns_float32(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    batch, noise = make_batch(), torch.randn(4, 4, 3)
    exact = make_policy("none").predict_action_chunk(batch, noise)
    rounded = make_policy("none", dtype="bfloat16").predict_action_chunk(batch, noise)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("key", "named"), [("action", "action of this batch"), (None, "--policy.optimizer_lr")]
)
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    make_policy: MakePolicy, make_batch: MakeBatch, key: str | None, named: str
) -> None:
    policy, batch = make_policy("none"), make_batch()
    policy.train()(batch)
    noise = None
    if key:
        batch[key][0, 0] = torch.nan
    else:
        noise = torch.full_like(batch["action"], torch.inf)
    with pytest.raises(AegisError, match=f"not finite at training step 2.*{named}"):
        policy(batch, noise=noise)


@pytest.mark.parametrize("key", ["observation.images.wrist", "observation.state"])
def test_a_missing_key_is_answered_with_both_sides_keys_and_rename_map(
    make_policy: MakePolicy, make_batch: MakeBatch, key: str
) -> None:
    policy, batch = make_policy("none"), make_batch()
    batch["observation.other"] = batch.pop(key)
    with pytest.raises(AegisError) as error:
        policy.train()(batch)
    sentence, *table = str(error.value).splitlines()
    assert key in sentence and "--rename_map" in sentence
    rows = [line.split() for line in table]
    assert rows[0] == ["data", "policy"]
    assert ["-", key] in rows and ["observation.other", "-"] in rows
    assert ["observation.images.front", "observation.images.front"] in rows
    with pytest.raises(AegisError, match=r"--rename_map"):
        policy.select_action(batch)


@pytest.mark.parametrize("task", [None, [], [""] * 4, ["reach", " ", "reach", "reach"]])
def test_data_without_language_is_refused(
    make_policy: MakePolicy, make_batch: MakeBatch, task: list[str] | None
) -> None:
    batch = make_batch()
    if task is None:
        del batch["task"]
    else:
        batch["task"] = task
    with pytest.raises(AegisError, match=r"no instruction \(key `task`\)"):
        make_policy("none").train()(batch)


@pytest.mark.parametrize("task", [None, [""] * 4, ["push the T", "", " ", "transfer_cube"]])
def test_an_instruction_stands_in_for_whatever_data_and_environment_say(
    make_policy: MakePolicy, make_batch: MakeBatch, task: list[str] | None
) -> None:
    policy = make_policy("none", instruction="push the T").eval()
    losses = []
    for tasks in (["push the T"] * 4, task):
        batch = make_batch() | {"task": tasks}
        torch.manual_seed(0)
        losses.append(policy({key: each for key, each in batch.items() if each is not None})[0].item())
    assert losses[0] == losses[1]


def test_a_vector_of_another_length_is_refused(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    batch = make_batch()
    batch["observation.state"] = batch["observation.state"][:, :-1]
    with pytest.raises(AegisError, match=r"observation.state has 4 values in the data and 5 in the policy"):
        make_policy("none").train()(batch)


@pytest.mark.parametrize(
    ("removed", "named"),
    [("observation.images", "camera"), ("observation.state", "observation.state"), ("action", "action")],
)
def test_features_that_lack_an_input_are_refused(
    make_config: Callable[..., AegisConfig], removed: str, named: str
) -> None:
    config = make_config("none")
    config.input_features = {k: v for k, v in config.input_features.items() if not k.startswith(removed)}
    config.output_features = {k: v for k, v in config.output_features.items() if not k.startswith(removed)}
    with pytest.raises(AegisError, match=rf"no {named}.*its keys are .*observation"):
        AegisPolicy(config)


def test_a_depth_camera_is_refused(make_config: Callable[..., AegisConfig]) -> None:
    config = make_config("none")
    config.input_features["observation.images.depth"] = PolicyFeature(FeatureType.VISUAL, (1, 32, 32))
    with pytest.raises(AegisError, match=r"observation.images.depth has shape \(1, 32, 32\)"):
        AegisPolicy(config)
