"""Anchors of random numbers, made without a pass on a model's device: as large as real ones, and as slow to hold."""

import torch
from torch import Tensor

from aegis_policy.isolation import (
    DEFAULT_SHARE,
    Anchor,
    GaussianAnchor,
    LinearFactors,
    Spectrum,
    direction_count,
)
from aegis_policy.vlm.backbone import VLMBackbone

_READS_WITH = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Linear layer -> the one that reads the same input, whose spectrum it shares."""


def random_anchor(vlm: VLMBackbone, kind: str) -> Anchor:
    """What `aegis` needs for `--policy.anchor=KIND` where the decoder layers alone learn."""
    return {"subspace": _subspace, "gaussian": _gaussian}[kind](vlm)


def _subspace(vlm: VLMBackbone) -> Anchor:
    spectra: dict[str, Spectrum] = {}
    factors = {}
    for name, layer in vlm.linear_layers.items():
        if name.startswith(vlm.family.decoder_layers):
            path, _, last = name.rpartition(".")
            owner = f"{path}.{_READS_WITH.get(last, last)}"
            if owner not in spectra:
                spectra[owner] = _random_spectrum(layer.weight)
            factors[name] = LinearFactors(spectra[owner])
    return Anchor(factors=factors)


def _random_spectrum(weight_ED: Tensor) -> Spectrum:
    width = weight_ED.shape[1]
    count = direction_count(width, DEFAULT_SHARE)
    vectors_DK = torch.linalg.qr(torch.randn(width, count, device=weight_ED.device)).Q
    return Spectrum(torch.linspace(2, 1, count), vectors_DK, torch.tensor(2.0 * width))


def _gaussian(vlm: VLMBackbone) -> Anchor:
    shape = vlm.num_layers, vlm.hidden_size
    return Anchor(gaussians={"all": GaussianAnchor(torch.randn(shape), torch.rand(shape) + 0.5, count=1)})
