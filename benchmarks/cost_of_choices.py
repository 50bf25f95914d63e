"""What one choice costs: a training step and a chunk of actions with one flag changed, beside the reference.

    python benchmarks/cost_of_choices.py [--vlm=embedded|smolvlm-256m|paligemma2-3b|DIR] [--batch-size=16] [--rounds=20]
        [--only flow_samples=1 ...] [--markdown] [--json=FILE]

The reference is a policy with all defaults, two cameras and no protection: `step_cost.py` says what those cost, and
their part is none of a choice's. One changed side at a time stands beside it. In every round both make a step, the
order moving on; afterwards both are asked for chunks of one observation, if the choice may change them. Ratios are
changed over reference, medians over rounds, of wall-clock time a sample. Beside them stand two that are counted:

- FLOPs of the linear layers (`_flops.training_flops`, without attention and without what checkpointing recomputes), a
  sample or a chunk;
- activations that the forward pass of a step keeps for the backward pass.

Before all this, hooks on the reference find what does the work in a step. The parts are sums over the rounds and add up
to the whole; `rest of forward` is embeddings, masks, noise and loss.

Of `paligemma2-3b` nothing is timed. FLOPs are counted on two layers of its decoder, its vision tower and the expert
(1024 wide, 18 blocks, 16 heads, chunks of 50), and multiplied: a minute or two and a few GB instead of tens.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from _activations import kept_bytes
from _flops import flops_by_layer, with_more_layers
from _gpu_plan import FULL
from _random_policy import CAMERAS, given, make_policy, random_batch
from _random_vlm import random_vlm, resolve
from _report import keep
from _shapes import PALIGEMMA2_3B_DECODER, PALIGEMMA2_3B_TOWER
from _turns import take_turns
from step_cost import Clock, Side
from torch import nn

from aegis_eval.statistics.tables import Table
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.vlm.backbone import VLMBackbone

_COUNTED = "paligemma2-3b"
_COUNTED_FLAGS = {**FULL.expert, "chunk_size": 50}
_CHUNK_SIZES = (8, 16, 32, 50)
_FLOW_SAMPLES = (1, 2, 4, 8, 16)
_EXPERTS = ((128, 4, 4), (192, 6, 6), (256, 8, 8))
_LARGE_EXPERTS = ((192, 6, 6), (512, 18, 8), (1024, 9, 16), (1024, 18, 16))
"""Width, depth and heads."""
_OF_TRAINING = frozenset({"flow_samples", "gradient_checkpointing"})
"""Flags that change nothing in a chunk of actions."""
_WARM_UP = 2
_VISION, _DECODER, _EXPERT = _NETWORKS = ("vision tower and projector", "decoder", "expert")
_PROCESSOR, _REST = "processor", "rest of forward"
PARTS = (_PROCESSOR, *_NETWORKS, _REST, "backward", "clipping", "optimizer")
"""Of a step; the networks' are forward alone."""
_HEADER = ("", "time a sample", "FLOPs a sample", "activations a step", "a chunk", "FLOPs a chunk")


@dataclass(frozen=True)
class Choice:
    """What one side has that the reference has not.

    Attributes:
        flags: `--policy.*`.
        batch: times the reference's batch.
        cameras: that it has.
    """

    flags: Mapping[str, Any] = field(default_factory=dict)
    batch: float = 1.0
    cameras: Sequence[str] = CAMERAS

    @property
    def changes_chunks(self) -> bool:
        """Whether a chunk of actions of one observation may cost something else."""
        return bool(self.flags.keys() - _OF_TRAINING) or len(self.cameras) != len(CAMERAS)


@dataclass(frozen=True)
class Setting:
    """What all sides have in common, but for their choice."""

    vlm: str
    batch_size: int
    image_size: int
    device: str = "cpu"
    flags: Mapping[str, Any] = field(default_factory=dict)

    def side(self, choice: Choice, **flags: Any) -> Side:
        torch.manual_seed(0)
        policy = make_policy(
            self.vlm,
            "none",
            self.image_size,
            self.device,
            choice.cameras,
            **{**self.flags, **choice.flags, **flags},
        )
        size, chunk = round(self.batch_size * choice.batch), policy.config.chunk_size
        return Side(policy, random_batch(size, self.image_size, chunk, self.device, choice.cameras))


class Counted(NamedTuple):
    """FLOPs by linear layer of a sample's training step and of a chunk of one observation, and its prefix tokens."""

    step: dict[str, float]
    chunk: dict[str, float]
    prefix_tokens: int


def choices(
    layers: int, flags: Mapping[str, Any], experts: Iterable[tuple[int, int, int]], *, counted: bool = False
) -> dict[str, Choice]:
    """All choices beside a reference with these flags, by name.

    Args:
        layers: of the decoder.
        flags: of the reference, where they are not the defaults.
        experts: their sizes.
        counted: leave out those that no count of FLOPs shows.
    """
    changed: list[dict[str, Any]] = [
        *({"backbone_depth": depth} for depth in (max(1, layers // 2), round(layers * 2 / 3))),
        *({"chunk_size": size} for size in _CHUNK_SIZES),
        *({"flow_samples": samples} for samples in _FLOW_SAMPLES),
        *(dict(zip(("expert_width", "expert_depth", "expert_heads"), size, strict=True)) for size in experts),
    ]
    if not counted:
        changed += [{"gradient_checkpointing": True}, {"dtype": "bfloat16"}]
    named = {", ".join(f"{name}={value}" for name, value in each.items()): Choice(each) for each in changed}
    batches = {} if counted else {"half the batch": Choice(batch=0.5), "twice the batch": Choice(batch=2.0)}
    differing = {
        name: choice
        for name, choice in named.items()
        if any(value != flags.get(flag, getattr(AegisConfig, flag)) for flag, value in choice.flags.items())
    }
    return {"one camera": Choice(cameras=CAMERAS[:1]), **batches, **differing}


def chunk(side: Side) -> None:
    """Actions of the first observation of the side's batch."""
    side.policy.predict_action_chunk({key: value[:1] for key, value in side.batch.items()})


def count(side: Side, *, chunks: bool = True) -> Counted:
    """FLOPs of a step and, if asked for, of a chunk."""
    side.policy.train()
    size = len(side.batch["action"])
    step = flops_by_layer(side.policy, lambda: side.policy(side.batch))
    return Counted(
        {name: flops / size for name, flops in step.items()},
        flops_by_layer(side.policy, lambda: chunk(side)) if chunks else {},
        side.policy._vlm_inputs(side.batch)["attention_mask"].shape[1],
    )


def count_whole(
    setting: Setting,
    vlm: VLMBackbone,
    choice: Choice,
    tower_layers: int,
    layers: int,
    *,
    chunks: bool = True,
) -> Counted:
    """`count` of a policy on a VLM as deep as that, whose own decoder and tower have two layers each."""
    wanted = {**setting.flags, **choice.flags}
    with given(vlm):
        side = setting.side(choice, expert_depth=2, backbone_depth=None)
    (tower,) = (name for name, part in vlm.vision_tower.named_modules() if isinstance(part, nn.ModuleList))
    stacks = {
        f"vlm.model.{vlm.family.vision_tower}.{tower}": tower_layers,
        f"vlm.model.{vlm.family.decoder_layers}": wanted.get("backbone_depth") or layers,
        "expert.readers": wanted["expert_depth"],
        "expert.blocks": wanted["expert_depth"],
    }
    small = count(side, chunks=chunks)
    return small._replace(
        step=with_more_layers(small.step, stacks), chunk=with_more_layers(small.chunk, stacks)
    )


def by_network(flops: Mapping[str, float], vlm: VLMBackbone) -> dict[str, float]:
    """FLOPs of vision tower and projector, decoder and expert: all that a policy has."""
    total = dict.fromkeys(_NETWORKS, 0.0)
    for name, value in flops.items():
        in_decoder = name.startswith(f"vlm.model.{vlm.family.decoder_layers}.")
        total[_EXPERT if name.startswith("expert.") else _DECODER if in_decoder else _VISION] += value
    return total


def activation_megabytes(side: Side) -> float:
    side.policy.train()
    return kept_bytes(lambda: side.policy(side.batch), side.policy.parameters()) / 1e6


@contextmanager
def forward_laps(policy: AegisPolicy) -> Iterator[list[dict[str, float]]]:
    """Seconds of each part of every forward pass inside the block; they add up to all of it."""
    passes: list[dict[str, float]] = []
    clocks: list[Clock] = []

    def lap(name: str) -> Callable[..., None]:
        return lambda *_: clocks[-1].lap(name)

    def begin(*_: Any) -> None:
        clocks.append(Clock(policy.vlm.device.type == "cuda"))

    def end(*_: Any) -> None:
        clocks[-1].lap(_REST)
        passes.append(clocks.pop().laps)

    prepare = policy.vlm.prepare

    def timed_prepare(*arguments: Any) -> dict[str, torch.Tensor]:
        lap(_REST)()
        inputs = prepare(*arguments)
        lap(_PROCESSOR)()
        return inputs

    modules = {
        _VISION: (policy.vlm.vision_tower, policy.vlm.projector),
        _DECODER: policy.vlm.encoding_layers,
        _EXPERT: (*policy.expert.readers, policy.expert),
    }
    with ExitStack() as stack:
        handles = [policy.register_forward_pre_hook(begin), policy.register_forward_hook(end)]
        for name, parts in modules.items():
            for part in parts:
                handles += [
                    part.register_forward_pre_hook(lap(_REST)),
                    part.register_forward_hook(lap(name)),
                ]
        for handle in handles:
            stack.callback(handle.remove)
        stack.enter_context(patch.object(policy.vlm, "prepare", timed_prepare))
        yield passes


def parts_of_a_step(side: Side, rounds: int) -> dict[str, float]:
    """Mean seconds of each of `PARTS` in a step."""
    side.policy.train()
    with forward_laps(side.policy) as passes:
        steps = [side.step() for _ in range(_WARM_UP + rounds)]
    found = [{**step, **laps} for step, laps in zip(steps, passes, strict=True)][_WARM_UP:]
    return {part: sum(each[part] for each in found) / rounds for part in PARTS}


def ratios(reference: Side, changed: Side, rounds: int, *, chunks: bool) -> dict[str, Any]:
    """Changed over reference: time of a sample's step and, if asked for, of a chunk; medians and quartiles."""
    sides = {"reference": reference, "changed": changed}

    def step(side: Side) -> float:
        return side.step()["wall"] / len(side.batch["action"])

    def act(side: Side) -> float:
        clock = Clock(side.batch["action"].is_cuda)
        chunk(side)
        clock.lap("chunk")
        return clock.laps["chunk"]

    found: dict[str, Any] = {}
    for name, action in {"time": step, **({"chunk_time": act} if chunks else {})}.items():
        for side in sides.values():
            side.policy.train()
        turns = take_turns({key: partial(action, side) for key, side in sides.items()}, rounds, _WARM_UP)
        each = [turn["changed"] / turn["reference"] for turn in turns]
        found[name] = median(each)
        if rounds > 1:
            found[f"{name}_quartiles"] = quantiles(each, n=4, method="inclusive")[::2]
        found[f"reference_{name}_seconds"] = median(turn["reference"] for turn in turns)
    return found


def counted_ratios(reference: Counted, changed: Counted, *, chunks: bool) -> dict[str, float]:
    found = {"flops": _total(changed.step) / _total(reference.step)}
    if chunks:
        found["chunk_flops"] = _total(changed.chunk) / _total(reference.chunk)
    return found


def measure(setting: Setting, rounds: int, only: Sequence[str]) -> dict[str, Any]:
    """The reference, its parts, and every choice beside it."""
    reference = setting.side(Choice())
    vlm = reference.policy.vlm
    counted, kept = count(reference), activation_megabytes(reference)
    parts = parts_of_a_step(reference, rounds)
    found = {}
    for name, choice in _chosen(choices(vlm.num_layers, setting.flags, _EXPERTS), only).items():
        changed, chunks = setting.side(choice), choice.changes_chunks
        found[name] = {
            **ratios(reference, changed, rounds, chunks=chunks),
            **counted_ratios(counted, count(changed, chunks=chunks), chunks=chunks),
            "activations": activation_megabytes(changed) / kept,
        }
        print(f"{name}: {found[name]}", flush=True)
        del changed  # before the next is made
    return {
        "reference": {
            "seconds": sum(parts.values()),
            "chunk_seconds": _median_of(found, "reference_chunk_time_seconds"),
            "activations_mb": kept,
            **_described(counted, vlm),
        },
        "parts_seconds": parts,
        "choices": found,
    }


def count_all(setting: Setting, only: Sequence[str]) -> dict[str, Any]:
    """What can be said of a VLM that is too large to be run: FLOPs of the reference and of every choice."""
    towers, layers = (shape["num_hidden_layers"] for shape in (PALIGEMMA2_3B_TOWER, PALIGEMMA2_3B_DECODER))
    vlm = random_vlm(setting.vlm, 2, {**PALIGEMMA2_3B_TOWER, "num_hidden_layers": 2})
    reference = count_whole(setting, vlm, Choice(), towers, layers)
    found = {}
    for name, choice in _chosen(choices(layers, setting.flags, _LARGE_EXPERTS, counted=True), only).items():
        chunks = choice.changes_chunks
        changed = count_whole(setting, vlm, choice, towers, layers, chunks=chunks)
        found[name] = counted_ratios(reference, changed, chunks=chunks)
    return {"reference": _described(reference, vlm), "choices": found}


def _chosen(all_choices: dict[str, Choice], only: Sequence[str]) -> dict[str, Choice]:
    if unknown := set(only) - all_choices.keys():
        raise SystemExit(f"--only: no choice is called {min(unknown)}; there are {', '.join(all_choices)}.")
    return {name: choice for name, choice in all_choices.items() if not only or name in only}


def _described(counted: Counted, vlm: VLMBackbone) -> dict[str, Any]:
    return {
        "prefix_tokens": counted.prefix_tokens,
        "flops": _total(counted.step),
        "chunk_flops": _total(counted.chunk),
        "flops_by_network": by_network(counted.step, vlm),
        "chunk_flops_by_network": by_network(counted.chunk, vlm),
    }


def _median_of(found: Mapping[str, Mapping[str, Any]], key: str) -> float | None:
    values = [each[key] for each in found.values() if key in each]
    return median(values) if values else None


def _total(flops: Mapping[str, float]) -> float:
    return sum(flops.values())


def table_of_parts(figures: Mapping[str, Any]) -> Table:
    """What does the work: time by part, FLOPs by network (a step's forward and backward; a chunk's)."""
    reference, parts = figures["reference"], figures.get("parts_seconds", dict.fromkeys(_NETWORKS, 0.0))
    whole = sum(parts.values())
    rows = [
        (
            part,
            f"{seconds / whole:.0%}" if whole else "",
            *(
                f"{reference[key][part] / sum(reference[key].values()):.0%}" if part in _NETWORKS else ""
                for key in ("flops_by_network", "chunk_flops_by_network")
            ),
        )
        for part, seconds in parts.items()
    ]
    return Table(("part", "of a step's time", "of its FLOPs", "of a chunk's FLOPs"), rows)


def table_of_choices(figures: Mapping[str, Any]) -> Table:
    """The reference in units, every choice as its ratio to it."""
    reference, size = figures["reference"], figures["batch_size"]
    timed = "seconds" in reference
    first = (
        "reference",
        _with_unit(reference["seconds"] / size if timed else None, "s"),
        _with_unit(reference["flops"] / 1e9, "GFLOP"),
        _with_unit(reference.get("activations_mb"), "MB"),
        _with_unit(reference.get("chunk_seconds"), "s"),
        _with_unit(reference["chunk_flops"] / 1e9, "GFLOP"),
    )
    keys = ("time", "flops", "activations", "chunk_time", "chunk_flops")
    rows = [
        (name, *(f"{ratio[key]:.2f}" if key in ratio else "" for key in keys))
        for name, ratio in figures["choices"].items()
    ]
    return Table(_HEADER, [first, *rows])


def _with_unit(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--vlm", default="embedded", help="a directory, or a shape to be given random weights"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="of the reference; even")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", default=[], help="names of choices; default: all")
    parser.add_argument("--markdown", action="store_true", help="print tables for a page")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.vlm == _COUNTED:
        setting = Setting(_COUNTED, 1, FULL.image_size, flags=_COUNTED_FLAGS)
        figures = count_all(setting, arguments.only)
    else:
        with tempfile.TemporaryDirectory() as folder:
            vlm = resolve(arguments.vlm, Path(folder))
            setting = Setting(vlm, arguments.batch_size, arguments.image_size, arguments.device)
            figures = {"rounds": arguments.rounds, **measure(setting, arguments.rounds, arguments.only)}
    figures = {
        "vlm": arguments.vlm,
        "batch_size": setting.batch_size,
        "image_size": setting.image_size,
        "flags": dict(setting.flags),
        **figures,
    }
    for table in (table_of_parts(figures), table_of_choices(figures)):
        print(f"\n{table.markdown() if arguments.markdown else table.text()}")
    keep(figures, arguments.json)


if __name__ == "__main__":
    main()
