"""How the parts of `_gpu_plan` are measured, a part in a process: what takes long to build serves all of its rows."""

import gc
import os
import shutil
import subprocess
import sysconfig
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from types import MethodType
from typing import Any

import anchor_cost
import numpy as np
import torch
import torch.distributed as dist
from _flops import peak_flops, training_flops
from _gpu_plan import STEP_PARTS, TWO_PROCESSES, Kept, Row, Scale
from _random_anchor import random_anchor
from _random_policy import ACTION_DIM, given, make_policy, random_batch
from _random_vlm import random_vlm
from inference_cost import chunk_actions, seconds
from step_cost import SIDES, Side
from torch.nn.parallel import DistributedDataParallel

from aegis_eval.results.provenance import provenance
from aegis_policy.isolation import DEFAULT_SHARE
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.protections.subspace import HOLD_EVERY
from aegis_policy.support import ranks
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.small import SmallVLMSize, build_small_vlm
from aegis_policy.vqa.examples import VQAExample

_SEED = 0
_WARM_UP = 3
_TINY = SmallVLMSize(
    image_size=32, patch_size=16, vision_layers=1, vision_width=32, text_layers=2, text_width=32, heads=2
)

Measure = Callable[[Row], dict[str, Any]]


def measure_part(part: str, rows: Iterable[Row], kept: Kept, scale: Scale) -> None:
    """Measure rows one after the other and keep each as soon as it is there.

    Raises:
        AegisError: there is no GPU, or another one than the kept rows are of.
    """
    if scale.device == "cuda" and not torch.cuda.is_available():
        raise AegisError("torch sees no GPU on this machine: run it on one that has one, or give --tiny.")
    _require_same_card(kept, scale)
    measure: Measure | None = None
    for row in rows:
        torch.manual_seed(_SEED)
        started = time.perf_counter()
        try:
            if measure is None:
                measure = _PREPARE[part](scale)
                print(f"{part}: ready after {time.perf_counter() - started:.1f} s", flush=True)
            _forget_memory(scale)
            figures = measure(row) | _memory(scale)
        except torch.OutOfMemoryError as error:
            figures = {"out_of_memory": one_line(error)}
        except Exception as error:
            kept.fail(row, f"{type(error).__name__}: {one_line(error)}")
            raise
        if ranks.index() == 0:
            taken = time.perf_counter() - started
            kept.keep(row, {**figures, "seed": _SEED, "measured_in_seconds": taken})
            print(f"{row.name}: {figures}", flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


def _require_same_card(kept: Kept, scale: Scale) -> None:
    environment = kept.read(Row("environment"))
    if environment is not None and environment["card"] != _card(scale):
        raise AegisError(
            f"The rows in --out are of {environment['card'] or 'a CPU'}, and this is {_card(scale) or 'a CPU'}: choose "
            "another folder."
        )


def _forget_memory(scale: Scale) -> None:
    gc.collect()
    if scale.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _memory(scale: Scale) -> dict[str, float]:
    """What torch had allocated and reserved on the card at most since `_forget_memory`."""
    if scale.device == "cpu":
        return {}
    return {
        "peak_memory_mb": torch.cuda.max_memory_allocated() / 1e6,
        "peak_reserved_mb": torch.cuda.max_memory_reserved() / 1e6,
    }


def _environment(scale: Scale) -> Measure:
    return partial(_describe, scale)


def _describe(scale: Scale, row: Row) -> dict[str, Any]:
    card = _card(scale)
    return {
        "card": card,
        "cards": torch.cuda.device_count(),
        "peak_flops": peak_flops(card or ""),
        "memory_mb": torch.cuda.get_device_properties(0).total_memory / 1e6 if card else None,
        "capability": list(torch.cuda.get_device_capability()) if card else None,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "compiler": _compiler(),
        "product_flops": _product_flops(scale),
        "copied_bytes_per_second": _copied_bytes(scale),
        "provenance": provenance(_SEED, time.process_time(), threads=torch.get_num_threads()),
    }


def _card(scale: Scale) -> str | None:
    return torch.cuda.get_device_name() if scale.device == "cuda" else None


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return said[0] if said else None


def _compiler() -> str | None:
    """The C compiler that torch.compile builds what it made with; None if it, or Python's headers, are missing."""
    found = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    return found if (Path(sysconfig.get_path("include")) / "Python.h").is_file() else None


def _product_flops(scale: Scale) -> float:
    """FLOP/s of a large bfloat16 product: what this card reaches of its data sheet."""
    a, b = torch.randn(2, scale.matrix, scale.matrix, device=scale.device, dtype=torch.bfloat16)
    return 2.0 * scale.matrix**3 / _median_seconds(lambda: a @ b, scale)


def _copied_bytes(scale: Scale) -> float:
    """Bytes a second that a large copy reads and writes."""
    one = torch.randn(8, scale.matrix, scale.matrix, device=scale.device)
    other = torch.empty_like(one)
    return 2.0 * one.numel() * one.element_size() / _median_seconds(lambda: other.copy_(one), scale)


def _median_seconds(action: Callable[[], Any], scale: Scale) -> float:
    return median([seconds(action, scale.device) for _ in range(_WARM_UP + scale.rounds)][_WARM_UP:])


def _step_cost(name: str, scale: Scale) -> Measure:
    policy = _fresh_policy(name, scale)
    side = _begun(policy, _batch(policy, 1, scale))
    flops = training_flops(policy, side.step)
    return partial(_steps, side, flops, scale)


def _steps(side: Side, flops_of_a_sample: float, scale: Scale, row: Row) -> dict[str, Any]:
    """Seconds, shares and MFU of steps with the row's batch."""
    vlm = side.policy.vlm.model
    if row.checkpointing:
        vlm.gradient_checkpointing_enable({"use_reentrant": False})
        vlm.disable_input_require_grads()
    else:
        vlm.gradient_checkpointing_disable()
    side.optimizer.zero_grad()  # of a step that found no memory
    side.batch = _batch(side.policy, row.batch_size, scale)
    figures = _timed(side)
    flops, peak = row.batch_size * flops_of_a_sample, peak_flops(_card(scale) or "")
    return {
        "batch_size": row.batch_size,
        "gradient_checkpointing": row.checkpointing,
        "prefix_tokens": side.policy._vlm_inputs(side.batch)["attention_mask"].shape[1],
        "learning_parameters": sum(p.numel() for p in side.policy.parameters() if p.requires_grad),
        "frozen_parameters": sum(p.numel() for p in side.policy.parameters() if not p.requires_grad),
        **figures,
        "flops": flops,
        "mfu": None if peak is None else flops / figures["seconds"] / peak,
    }


def _timed(side: Side) -> dict[str, Any]:
    """The mean of as many steps as hold one in which the default protection puts weights back, and their median."""
    steps = [side.step() for _ in range(_WARM_UP + HOLD_EVERY)][_WARM_UP:]
    total = {part: sum(step[part] for step in steps) for part in steps[0]}
    return {
        "seconds": total["wall"] / len(steps),
        "median_seconds": median(step["wall"] for step in steps),
        **{f"share_of_{part}": total[part] / total["wall"] for part in total if part not in ("wall", "cpu")},
    }


def _chunk(scale: Scale) -> Measure:
    return partial(_chunks, _fresh_policy("none", scale).eval(), scale)


def _chunks(policy: AegisPolicy, scale: Scale, row: Row) -> dict[str, Any]:
    """Seconds of a chunk of one observation and of its parts, and of the first chunk, for which is compiled."""
    batch = _batch(policy, 1, scale)
    noise = torch.randn(1, policy.config.chunk_size, ACTION_DIM, device=scale.device)
    eager = policy.predict_action_chunk(batch, noise)
    compiled = row.name == "chunk-compiled"
    if compiled and scale.backend == "inductor" and _compiler() is None:
        return {"skipped": "torch.compile finds no C compiler, or no headers of Python"}
    if compiled:
        _compile(policy, scale.backend)
    started = time.perf_counter()
    chunk = policy.predict_action_chunk(batch, noise).cpu()
    first = time.perf_counter() - started
    actions = chunk_actions(policy, batch, noise)
    return {
        "compiled_with": scale.backend if compiled else None,
        "first_seconds": first,
        **{f"{name}_seconds": _median_seconds(action, scale) for name, action in actions.items()},
        "difference_to_eager": float((chunk - eager.cpu()).norm() / eager.norm()),
    }


def _compile(policy: AegisPolicy, backend: str) -> None:
    """Compile the decoder layers, which share what is compiled, and the expert.

    Not the whole backbone: the policy reads each layer's output through a hook, a new one for each chunk, which would
    be compiled again.
    """
    for module in (*policy.vlm.encoding_layers, policy.expert):
        module.forward = MethodType(torch.compile(type(module).forward, backend=backend), module)


def _anchor(scale: Scale) -> Measure:
    return partial(_anchor_pass, _backbone(scale).eval(), scale)


def _anchor_pass(vlm: VLMBackbone, scale: Scale, row: Row) -> dict[str, Any]:
    side = scale.image_size
    pictures = np.random.default_rng(_SEED).integers(0, 256, (scale.samples, side, side, 3), np.uint8)
    examples = [VQAExample(picture, "what is on the table") for picture in pictures]
    arguments = Namespace(batch_size=scale.anchor_batch, share=DEFAULT_SHARE, rounds=1, device=scale.device)
    return {"samples": scale.samples, **anchor_cost.measure(vlm, examples, arguments)}


def _two_processes(scale: Scale) -> Measure:
    if scale.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if scale.device == "cuda" else "gloo")
    return partial(_two_steps, scale)


def _two_steps(scale: Scale, row: Row) -> dict[str, Any]:
    """A step of both processes, each with a batch of its own."""
    policy = _fresh_policy(STEP_PARTS[row.name.replace(TWO_PROCESSES, "step")], scale)
    wrap = partial(DistributedDataParallel, find_unused_parameters=True)  # as LeRobot does
    side = _begun(policy, _batch(policy, row.batch_size, scale), wrap)
    return {"processes": ranks.count(), "batch_size_of_each": row.batch_size, **_timed(side)}


_PREPARE: dict[str, Callable[[Scale], Measure]] = {
    "environment": _environment,
    **{part: partial(_step_cost, name) for part, name in STEP_PARTS.items()},
    "chunk": _chunk,
    "anchor": _anchor,
    TWO_PROCESSES: _two_processes,
}


def _backbone(scale: Scale) -> VLMBackbone:
    """A random VLM, made where it is used: weights of billions of parameters would take minutes to make and to move."""
    with torch.device(scale.device):
        if scale.vlm == "tiny":
            return build_small_vlm(["on", "table"], _TINY, _SEED, scale.vlm)
        return random_vlm(scale.vlm)


def _fresh_policy(name: str, scale: Scale) -> AegisPolicy:
    """A policy of a side of `step_cost`, with a random backbone and, if it needs one, a random anchor."""
    torch.manual_seed(_SEED)
    protection, options = SIDES[name]
    vlm, anchor = _backbone(scale), None
    if protection == "aegis":
        anchor = random_anchor(vlm, options["anchor"])
        options = {**options, "anchor_path": "random"}
    with torch.device(scale.device), given(vlm, anchor):
        return make_policy(
            scale.vlm,
            protection,
            scale.image_size,
            scale.device,
            dtype="bfloat16",
            **scale.expert,
            **options,
        )


def _begun(policy: AegisPolicy, batch: dict[str, Any], wrap: Any = None) -> Side:
    """The policy in training; a real anchor lies in a file and not on the card, so this one goes."""
    side = Side(policy, batch) if wrap is None else Side(policy, batch, wrap)
    policy.anchor = None
    return side


def _batch(policy: AegisPolicy, size: int, scale: Scale) -> dict[str, Any]:
    return random_batch(size, scale.image_size, policy.config.chunk_size, scale.device)
