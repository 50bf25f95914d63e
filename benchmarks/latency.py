"""How long a robot waits for a chunk of actions: ours, `smolvla` and `act`, as they are and compiled, taking turns.

    python benchmarks/latency.py [--sides embedded ours smolvla act] [--compiled SIDES] [--json=FILE]

One observation with one camera, random weights, float32, ten Euler steps. `ours` and `smolvla` have a decoder of
SmolLM2-135M's shape and experts of one size, as `peers.py` makes them, chunks of 50; `act` is LeRobot's at its
defaults; `embedded` is this package's own small VLM with the default expert and chunks of 16. A side that
`--compiled` names runs with `compile_model=true` too; `act` has no such flag. Printed are medians of wall-clock
seconds, their share of a control period at 10 and at 30 Hz (a policy that carries out several actions of a chunk waits
once for all of them), and what compiling saves, the median over rounds.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import peers
import torch
from _random_policy import make_policy
from _random_vlm import resolve
from _report import report
from _turns import take_turns
from lerobot.policies import PreTrainedPolicy

from aegis_policy.pretrained import EMBEDDED_VLM

_WARM_UP = 3
_CONTROL_HZ = (10, 30)
_COMPILED = " compiled"
_COMPILING = {"compile_model": True, "compile_mode": "default"}
_WORDS = 15
"""Tokens of text, for `smolvla`: as many as ours makes of the task."""


def sides(arguments: argparse.Namespace, vlm: str) -> dict[str, Callable[..., PreTrainedPolicy]]:
    """Name -> what makes a policy, which takes LeRobot's flags of compiling."""
    layers, device = arguments.layers, arguments.device
    smolvla = partial(peers.smolvla, vlm, layers, device)

    def ours(**options: Any) -> PreTrainedPolicy:
        like = smolvla()
        return peers.ours(vlm, "none", depth=layers, like=like, device=device, **options)

    def embedded(**options: Any) -> PreTrainedPolicy:
        cameras = (peers.CAMERA,)
        return make_policy(EMBEDDED_VLM, "none", peers.SIDE, device, cameras=cameras, **options)

    made = {"embedded": embedded, "ours": ours, "smolvla": smolvla, "act": partial(peers.act, device)}
    return {name: made[name] for name in arguments.sides}


def chunk(policy: PreTrainedPolicy, batch: dict[str, Any], device: str) -> float:
    """Seconds of one chunk."""
    started = time.perf_counter()
    policy.predict_action_chunk(dict(batch))
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(arguments: argparse.Namespace, vlm: str) -> dict[str, Any]:
    """The figures of every side."""
    actions, batch = {}, peers.batch_of(1, arguments.device, _WORDS)
    for name, make in sides(arguments, vlm).items():
        kinds = {name: {}} | ({f"{name}{_COMPILED}": _COMPILING} if name in arguments.compiled else {})
        for title, options in kinds.items():
            policy = make(**options).eval()
            actions[title] = partial(chunk, policy, batch, arguments.device)
            started = time.perf_counter()
            actions[title]()
            print(f"{title}: first chunk after {time.perf_counter() - started:.1f} s", flush=True)
    rounds = take_turns(actions, arguments.rounds, _WARM_UP)
    found = {}
    for name in actions:
        seconds = median(each[name] for each in rounds)
        found[f"{name}, seconds"] = seconds
        found |= {f"{name}, periods at {hz} Hz": seconds * hz for hz in _CONTROL_HZ}
        if plain := name.removesuffix(_COMPILED) if name.endswith(_COMPILED) else None:
            found[f"{name} over {plain}"] = median(each[name] / each[plain] for each in rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=30, help="of the decoder of ours and smolvla")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sides", nargs="+", default=["embedded", "ours", "smolvla", "act"])
    parser.add_argument("--compiled", nargs="+", default=[], help="sides, but act, that also run compiled")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    names = ("layers", "rounds", "device", "compiled")
    figures: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        figures |= measure(arguments, resolve("smolvlm-256m", Path(folder), arguments.layers))
    report(figures, arguments.json)


if __name__ == "__main__":
    main()
