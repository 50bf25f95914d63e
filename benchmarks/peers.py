"""What a training step and a chunk of actions cost beside LeRobot's own policies: time in one process, taking turns.

    python benchmarks/peers.py [--layers=30] [--batch-size=4] [--rounds=20] [--device=cpu] [--json=FILE]

Every VLM has random weights of the shape of SmolVLM-256M's decoder (`smolvlm-256m`), a small vision tower in front
of it, one camera of 64 tokens and 15 of text, chunks of 50 actions in ten Euler steps; optimizer, clipping and
loss are the policies' own presets, with one flow sample, in float32. Pairs:

- `full`: all layers run; ours under the default protection, `smolvla` with its decoder training as well.
- `half`: the same of the first half of the layers, all that `smolvla` then has; ours keeps the rest to answer with.
- `shipped`: `smolvla` as its defaults are (16 layers, nothing but the expert learns), ours under `freeze` of as many.
- `act`: LeRobot's ACT at its defaults, from random weights, beside ours at full depth.

Experts have as many parameters as those of the `smolvla` beside them, as nearly as whole blocks allow. A ratio is
theirs over ours, the median over rounds, of wall-clock time: above 1 ours is faster. Goals: 1.2 for training and 1.25
(0.8 of the time) for a chunk, `full`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from _random_policy import ACTION_DIM, STATE_DIM, make_policy, random_batch, save_random_anchor
from _random_vlm import resolve
from _report import report
from _turns import take_turns
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import PreTrainedPolicy
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS

from aegis_policy.model.expert import ActionExpert

CHUNK, SIDE, CAMERA = 50, 96, "observation.images.front"

_SHIPPED_LAYERS = 16
_WARM_UP = 2


class Pair(NamedTuple):
    """A policy of LeRobot and ours, each made when it is measured."""

    theirs: Callable[[], PreTrainedPolicy]
    ours: Callable[[PreTrainedPolicy], PreTrainedPolicy]


def features() -> dict[str, dict[str, PolicyFeature]]:
    return {
        "input_features": {
            CAMERA: PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE)),
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE_DIM,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
    }


def smolvla(vlm: str, layers: int, device: str, **options: Any) -> SmolVLAPolicy:
    """LeRobot's policy on the first layers of a VLM; the rest is thrown away."""
    return SmolVLAPolicy(
        SmolVLAConfig(
            vlm_model_name=vlm,
            num_vlm_layers=layers,
            resize_imgs_with_padding=(SIDE, SIDE),
            device=device,
            **features(),
            **options,
        )
    ).to(device)


def act(device: str) -> ACTPolicy:
    config = ACTConfig(
        chunk_size=CHUNK,
        n_action_steps=CHUNK,
        pretrained_backbone_weights=None,
        device=device,
        **features(),
    )
    return ACTPolicy(config).to(device)


def ours(vlm: str, protection: str, depth: int, like: PreTrainedPolicy, device: str, **options: Any) -> Any:
    """Ours on the same layers, with an expert as large as that of a `smolvla`."""
    theirs = like.model.vlm_with_expert.lm_expert if isinstance(like, SmolVLAPolicy) else None
    size = {}
    if theirs is not None:
        width = theirs.config.hidden_size
        size = {"expert_width": width, "expert_heads": theirs.config.num_attention_heads}
        size["expert_depth"] = _blocks(theirs, width, theirs.config.num_attention_heads)
    return make_policy(
        vlm,
        protection,
        SIDE,
        device,
        cameras=(CAMERA,),
        chunk_size=CHUNK,
        flow_samples=1,
        backbone_depth=depth,
        **size,
        **options,
    )


def _blocks(theirs: torch.nn.Module, width: int, heads: int) -> int:
    """How many of our expert's blocks have as many parameters as an expert of `smolvla`."""

    def count(blocks: int) -> int:
        with torch.device("meta"):
            expert = ActionExpert(ACTION_DIM, STATE_DIM, CHUNK, 576, blocks, width, blocks, heads)
        return sum(p.numel() for p in expert.parameters())

    wanted = sum(p.numel() for p in theirs.parameters())
    return max(1, round((wanted - count(1)) / (count(2) - count(1))) + 1)


def batch_of(size: int, device: str, words: int) -> dict[str, Any]:
    """One for every policy: beside the task lie as many tokens of text as ours makes of it, for `smolvla`."""
    batch = random_batch(size, SIDE, CHUNK, device, cameras=(CAMERA,))
    tokens = torch.randint(0, 50, (size, words), device=device)
    return {
        **batch,
        OBS_LANGUAGE_TOKENS: tokens,
        OBS_LANGUAGE_ATTENTION_MASK: torch.ones_like(tokens, dtype=torch.bool),
    }


class Measured:
    """A policy, trained and asked for chunks."""

    def __init__(self, policy: PreTrainedPolicy, batch: Mapping[str, Any], device: str) -> None:
        self.policy, self.device = policy, device
        self.batch = batch
        self.one = {key: value[:1] for key, value in batch.items()}
        self.config = policy.config.get_optimizer_preset()
        self.optimizer = self.config.build(policy.get_optim_params())

    def train(self) -> float:
        self.policy.train()
        started = time.perf_counter()
        self.policy.forward(dict(self.batch))[0].backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.grad_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self._since(started)

    def chunk(self) -> float:
        self.policy.eval()
        started = time.perf_counter()
        self.policy.predict_action_chunk(dict(self.one))
        return self._since(started)

    def _since(self, started: float) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def compare(pair: Pair, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of ours, and theirs over ours."""
    theirs = pair.theirs()
    policies = {"theirs": theirs, "ours": pair.ours(theirs)}
    inputs = policies["ours"]._vlm_inputs(random_batch(1, SIDE, CHUNK, arguments.device, (CAMERA,)))
    words = int((~policies["ours"].vlm.image_tokens(inputs)).sum())
    batch = batch_of(arguments.batch_size, arguments.device, words)
    sides = {name: Measured(policy, batch, arguments.device) for name, policy in policies.items()}
    found = {}
    for what in ("train", "chunk"):
        actions = {name: getattr(side, what) for name, side in sides.items()}
        rounds = take_turns(actions, arguments.rounds, _WARM_UP)
        found[f"{what}: ours, seconds"] = median(each["ours"] for each in rounds)
        found[f"{what}: theirs over ours"] = median(each["theirs"] / each["ours"] for each in rounds)
    for name, policy in policies.items():
        found[f"{name}: millions of parameters"] = sum(p.numel() for p in policy.parameters()) / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=30, help="of the VLM's decoder")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", nargs="+", default=["full", "half", "shipped", "act"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    figures: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("layers", "batch_size", "rounds", "device")
    }
    layers, device = arguments.layers, arguments.device
    half, shipped = layers // 2, min(_SHIPPED_LAYERS, layers)
    with tempfile.TemporaryDirectory() as folder:
        vlm = resolve("smolvlm-256m", Path(folder), layers)
        anchor = save_random_anchor(vlm, SIDE, Path(folder), ["subspace"])
        learning = {"protection": "aegis", "anchor_path": anchor, "device": device}
        pairs = {
            "full": Pair(
                lambda: smolvla(vlm, layers, device, train_expert_only=False),
                lambda theirs: ours(vlm, depth=layers, like=theirs, **learning),
            ),
            "half": Pair(
                lambda: smolvla(vlm, half, device, train_expert_only=False),
                lambda theirs: ours(vlm, depth=half, like=theirs, **learning),
            ),
            "shipped": Pair(
                lambda: smolvla(vlm, shipped, device),
                lambda theirs: ours(vlm, "freeze", depth=shipped, like=theirs, device=device),
            ),
            "act": Pair(lambda: act(device), lambda theirs: ours(vlm, depth=layers, like=theirs, **learning)),
        }
        for name in arguments.pairs:
            figures |= {f"{name}, {key}": value for key, value in compare(pairs[name], arguments).items()}
    report(figures, arguments.json)


if __name__ == "__main__":
    main()
