"""What a chunk of actions costs: `aegis`-trained over `none`-trained, and sampling over encoding.

    python benchmarks/inference_cost.py [--vlm=embedded|DIR] [--batch-size=1] [--rounds=30] [--json=FILE]

Targets: ratio 1.00 within noise; sampling (10 Euler steps, with their keys and values) under 3 encodings.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _random_policy import ACTION_DIM, make_policy, random_batch
from _report import report
from _turns import take_turns
from torch import Tensor

from aegis_policy.model import flow_matching
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.vlm.prefix import Prefix

_WARM_UP = 3


def trained_policy(vlm: str, protection: str, image_size: int, device: str) -> AegisPolicy:
    """One training step, a checkpoint, and back: what inference gets to see of a protection."""
    policy = make_policy(vlm, protection, image_size, device).train()
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    loss, _ = policy(random_batch(2, image_size, policy.config.chunk_size, device))
    loss.backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
        return AegisPolicy.from_pretrained(folder)


def seconds(action: Callable[[], Any], device: str) -> float:
    """Processor time of one call on the CPU, wall-clock time on a GPU."""
    if device.startswith("cuda"):
        start = time.perf_counter()
        action()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    action()
    return time.process_time() - start


def chunk_actions(policy: AegisPolicy, batch: dict[str, Any], noise: Tensor) -> dict[str, Callable[[], Any]]:
    """Inference of a chunk, and its parts on their own: the processor, the backbone, the Euler steps."""
    inputs = policy._vlm_inputs(batch)
    state_BS = batch["observation.state"]

    @torch.no_grad()
    def encode() -> Prefix:
        with policy._own_precision():
            return policy.vlm.encode(inputs)

    prefix = encode()

    @torch.no_grad()
    def sample() -> Tensor:
        with policy._own_precision():
            cache = policy.expert.prepare_prefix(prefix.hidden_states, prefix.mask)
            return flow_matching.euler_sample(
                lambda x, t: policy.expert(x, t, state_BS, cache).float(),
                noise,
                policy.config.num_inference_steps,
            )

    return {
        "chunk": lambda: policy.predict_action_chunk(batch, noise),
        "prepare": lambda: policy._vlm_inputs(batch),
        "encode": encode,
        "sample": sample,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vlm", default="embedded")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)

    free, protected = (
        trained_policy(arguments.vlm, protection, arguments.image_size, arguments.device)
        for protection in ("none", "aegis")
    )
    batch = random_batch(arguments.batch_size, arguments.image_size, free.config.chunk_size, arguments.device)
    noise = torch.randn(arguments.batch_size, free.config.chunk_size, ACTION_DIM, device=arguments.device)
    actions = {
        **chunk_actions(free, batch, noise),
        "aegis": lambda: protected.predict_action_chunk(batch, noise),
    }
    timed = {name: partial(seconds, action, arguments.device) for name, action in actions.items()}
    rounds = take_turns(timed, arguments.rounds, _WARM_UP)

    report(
        {
            "vlm": arguments.vlm,
            "batch_size": arguments.batch_size,
            "rounds": len(rounds),
            "chunk_seconds_none": median(each["chunk"] for each in rounds),
            "prepare_seconds": median(each["prepare"] for each in rounds),
            "encode_seconds": median(each["encode"] for each in rounds),
            "sample_seconds": median(each["sample"] for each in rounds),
            "aegis_over_none": median(each["aegis"] / each["chunk"] for each in rounds),
            "sampling_over_encoding": median(each["sample"] / each["encode"] for each in rounds),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
