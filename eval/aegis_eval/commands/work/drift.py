"""The work of `aegis-drift`: the same questions through two models, whose hidden states are compared by layer."""

import time
from collections.abc import Iterator
from itertools import batched
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from aegis_eval.checkpoints import load_original_vlm, load_policy_vlm
from aegis_eval.commands.drift import DriftConfig
from aegis_eval.devices import torch_device
from aegis_eval.questions.tabletop import load_samples
from aegis_eval.results.provenance import provenance
from aegis_eval.statistics.intervals import mean_interval
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import write_json
from aegis_policy.vlm.prefix import Prefix


@torch.no_grad()
def measure_drift(config: DriftConfig) -> Path:
    """Measure, write the mean over layers with a 95 % interval (whole scenes resampled) and every layer's drift.

    Raises:
        AegisError: flags that name no checkpoint or benchmark, or the original VLM cannot be had.
    """
    started = time.monotonic()
    cli.require_at_least(config, samples=1, batch_size=1, seed=0)
    device = torch_device(config.device)
    tuned, origin, _ = load_policy_vlm(config.policy)
    original, reason = load_original_vlm(origin, config.pretrained)
    if original is None:
        raise AegisError(reason or "Nothing says what this policy was made from: name it with --pretrained.")
    tuned.to(device).eval()
    of_each = [(vlm.model.config.model_type, vlm.num_layers, vlm.hidden_size) for vlm in (tuned, original)]
    if of_each[0] != of_each[1]:
        described = [f"{kind} with {layers} layers of {width}" for kind, layers, width in of_each]
        raise AegisError(
            f"--pretrained={original.name} is a {described[1]}, and the policy's VLM a {described[0]}: name the one it "
            "was made from."
        )
    original.to(device).eval()
    tuned.end_at(None)
    samples = load_samples(
        config.benchmark, config.split, config.samples, config.seed, cache_dir=config.cache_dir
    )
    drifts = []
    with tqdm(total=len(samples), desc="drift", unit="question") as bar:
        for batch in batched(samples, config.batch_size):
            images, questions = [each.image for each in batch], [each.question for each in batch]
            inputs = tuned.question_inputs(images, questions)
            drifts += list(relative_drift(tuned.encode(inputs), original.encode(inputs)))
            bar.update(len(batch))
    drifts_NL = np.stack(drifts)
    scenes = [sample.scene for sample in samples]
    drift, interval = float(drifts_NL.mean()), mean_interval(drifts_NL.mean(1), scenes)
    results = {
        "policy": config.policy.path,
        "pretrained_model": original.name,
        "benchmark": config.benchmark,
        "split": config.split,
        "samples": len(samples),
        "drift": drift,
        "ci": interval,
        "per_layer": [
            {"drift": float(drifts_N.mean()), "ci": mean_interval(drifts_N, scenes)}
            for drifts_N in drifts_NL.T
        ],
        "provenance": provenance(config.seed, time.monotonic() - started),
    }
    write_json(config.output, results)
    low, high = interval
    print(
        f"activations moved by {100 * drift:.1f} % of their length [{100 * low:.1f}, {100 * high:.1f}], "
        f"mean of {drifts_NL.shape[1]} layers and {len(samples)} questions\nwrote {config.output}"
    )
    return config.output


def relative_drift(tuned: Prefix, original: Prefix) -> Iterator[NDArray[np.float64]]:
    """||h - h0|| / ||h0|| of every sample, one array of (L,) layers each; padding does not count."""
    mask_BT1 = original.mask.unsqueeze(-1)

    def squared_B(states_BTD: Tensor) -> Tensor:
        return (states_BTD.double().square() * mask_BT1).sum((1, 2))

    ratio_BL = torch.stack(
        [
            (squared_B(now - before) / squared_B(before)).sqrt()
            for now, before in zip(tuned.hidden_states, original.hidden_states, strict=True)
        ],
        dim=1,
    )
    yield from ratio_BL.cpu().numpy()
