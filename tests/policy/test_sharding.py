"""No training goes on with parameters in pieces that its protection does not reach, whoever shards which of them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from training_steps import MakeBatch, MakePolicy, build_optimizer

from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError

REFUSAL = r"sharded.*--parallelism\.dp_shard.*torchrun"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def _one_parameter(policy: AegisPolicy, mesh: DeviceMesh) -> None:
    embedding = policy.expert.embed_state
    embedding.weight = nn.Parameter(distribute_tensor(embedding.weight.detach(), mesh, [Shard(0)]))


WHOLE = "the whole policy, which gathers while it runs"
SHARDINGS: dict[str, Callable[[AegisPolicy, DeviceMesh], object]] = {
    WHOLE: lambda policy, mesh: fully_shard(policy, mesh=mesh),
    "layers of the VLM": lambda policy, mesh: [
        fully_shard(layer, mesh=mesh) for layer in policy.vlm.decoder_layers
    ],
    "the expert": lambda policy, mesh: distribute_module(policy.expert, mesh),
    "one parameter": _one_parameter,
}


@pytest.mark.parametrize("how", SHARDINGS)
def test_a_sharded_policy_is_refused_whether_sharded_before_or_after_its_optimizer(
    make_policy: MakePolicy, make_batch: MakeBatch, mesh: DeviceMesh, how: str
) -> None:
    policy = make_policy("aegis", anchor="gaussian" if how == WHOLE else "subspace")
    build_optimizer(policy)
    SHARDINGS[how](policy, mesh)
    with pytest.raises(AegisError, match=REFUSAL):
        policy.train()(make_batch())
    with pytest.raises(AegisError, match=REFUSAL):
        policy.get_optim_params()


@pytest.mark.parametrize("protection", ["l2_sp", "maps", "distill", "w2_penalty", "replay"])
def test_what_wants_whole_parameters_is_refused_beside_the_protections_that_do_not(
    make_policy: MakePolicy, make_batch: MakeBatch, mesh: DeviceMesh, protection: str
) -> None:
    policy = make_policy(protection)
    SHARDINGS[WHOLE](policy, mesh)
    with pytest.raises(AegisError, match=REFUSAL):
        policy.train()(make_batch())
    probed = make_policy("aegis", anchor="subspace", vqa_probe_freq=1)
    SHARDINGS[WHOLE](probed, mesh)
    with pytest.raises(AegisError, match=r"--policy.vqa_probe_freq=1 wants whole parameters"):
        probed.train()(make_batch())


def test_what_accelerate_is_going_to_shard_is_refused(
    make_policy: MakePolicy, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate says so in the environment when it is given the plugin, as by LeRobot's `--parallelism.dp_shard`."""
    policy = make_policy("none")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
    AcceleratorState._reset_state(reset_partial_state=True)
    for starts in (policy.get_optim_params, lambda: policy.train()(make_batch())):
        with pytest.raises(AegisError, match=REFUSAL):
            starts()
