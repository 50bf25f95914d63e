"""Everything that is kept of a pretrained model in order to protect it, and the one file that keeps it."""

import os
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aegis_policy.isolation._factors import LinearFactors
from aegis_policy.isolation._gaussian import REBUILD, AnchorError, GaussianAnchor
from aegis_policy.isolation._sketch import Spectrum

KIND = "aegis-anchor"
"""What the file calls its format."""
FORMAT_VERSION = "2"


@dataclass(frozen=True, eq=False)
class Anchor:
    """A static anchor: what the pretrained activations were like on data that must not be forgotten.

    Attributes:
        gaussians: moments of the decoder layers' outputs, by group of tokens: `all`, or `image` and `text`.
        factors: covariances of linear layers, by name.
        importance: Fisher information of single weights, by parameter name, relative to their mean.
        metadata: strings that say where the anchor comes from: `vlm`, `fingerprint`, `samples`, `source`, ...;
            `kind` and `format_version` are added when it is saved.
    """

    gaussians: dict[str, GaussianAnchor] = field(default_factory=dict)
    factors: dict[str, LinearFactors] = field(default_factory=dict)
    importance: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, beside its place first, so that `path` is either whole or untouched.

        Eigenvectors are written as float16 (`select_blocks` makes those it takes orthonormal again), importances as
        bfloat16.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        metadata = {key: str(value) for key, value in self.metadata.items()}
        metadata |= {"kind": KIND, "format_version": FORMAT_VERSION}
        try:
            save_file({name: x.cpu().contiguous() for name, x in self._tensors().items()}, beside, metadata)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote; eigenvectors stay float16.

        Raises:
            AnchorError: no such file, not a whole safetensors file, another kind of file or another format, wrong
                tensors, values that are not finite, a negative deviation.
        """
        path = Path(path)
        if not path.is_file():
            raise AnchorError(f"There is no anchor at {path}", f"correct the path or {REBUILD}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise AnchorError(f"The anchor {path} is truncated or not a safetensors file") from error
        if metadata.get("kind") != KIND or metadata.get("format_version") != FORMAT_VERSION:
            found = f"{metadata.get('kind')!r} of format {metadata.get('format_version')!r}"
            raise AnchorError(f"The anchor {path} is {found}, not {KIND!r} of format {FORMAT_VERSION!r}")
        try:
            gaussians, factors, importance = _gaussians(tensors), _factors(tensors), _importance(tensors)
        except AnchorError as error:
            raise AnchorError(f"{error.fault} in {path}", error.mend) from error
        except (KeyError, ValueError) as error:
            raise AnchorError(f"The anchor {path} is not whole ({error})") from error
        return cls(gaussians, factors, importance, metadata)

    def part(
        self,
        *,
        gaussians: Iterable[str] = (),
        inputs: bool = False,
        outputs: bool = False,
        importance: bool = False,
    ) -> Self:
        """An anchor that holds only what is named here: groups of tokens, factors' sides, single weights.

        Its tensors are copies. Those of `load` are mapped from the file, all of which stays in memory as long as one
        of them does.

        Raises:
            KeyError: a group that it does not hold.
        """
        factors = {
            name: LinearFactors(layer.inputs, layer.outputs if outputs else None)
            for name, layer in self.factors.items()
        }
        return replace(
            self,
            gaussians=deepcopy({name: self.gaussians[name] for name in gaussians}),
            factors=deepcopy(factors) if inputs else {},
            importance=deepcopy(self.importance) if importance else {},
        )

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Make sure that the moments are those of a model of this depth and width.

        Raises:
            AnchorError: they are not.
        """
        for gaussian in self.gaussians.values():
            gaussian.check(num_layers, hidden_size)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for group, gaussian in self.gaussians.items():
            tensors[f"gaussian/{group}/mean"] = gaussian.mean_LD
            tensors[f"gaussian/{group}/std"] = gaussian.std_LD
            tensors[f"gaussian/{group}/count"] = torch.tensor(gaussian.count)
            if gaussian.noise_LD is not None:
                tensors[f"gaussian/{group}/noise"] = gaussian.noise_LD.float()
        for name, layer in self.factors.items():
            for side, spectrum in layer._asdict().items():
                if spectrum is not None:
                    tensors[f"{side}/{name}/values"] = spectrum.values_K
                    tensors[f"{side}/{name}/vectors"] = spectrum.vectors_DK.half()
                    tensors[f"{side}/{name}/total"] = spectrum.total
        for name, importance in self.importance.items():
            tensors[f"importance/{name}"] = importance.bfloat16()
        return tensors


def _gaussians(tensors: dict[str, Tensor]) -> dict[str, GaussianAnchor]:
    groups = [key.split("/")[1] for key in tensors if key.startswith("gaussian/") and key.endswith("/mean")]
    gaussians = {}
    for group in groups:
        mean_LD, std_LD, count = (tensors[f"gaussian/{group}/{part}"] for part in ("mean", "std", "count"))
        noise_LD = tensors.get(f"gaussian/{group}/noise")
        gaussians[group] = GaussianAnchor(mean_LD, std_LD, int(count), noise_LD)
    return gaussians


def _factors(tensors: dict[str, Tensor]) -> dict[str, LinearFactors]:
    names = [key.split("/")[1] for key in tensors if key.startswith("inputs/") and key.endswith("/values")]
    return {
        name: LinearFactors(
            _spectrum(tensors, f"inputs/{name}"),
            _spectrum(tensors, f"outputs/{name}") if f"outputs/{name}/values" in tensors else None,
        )
        for name in names
    }


def _importance(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "importance/"
    importance = {key[len(prefix) :]: x.float() for key, x in tensors.items() if key.startswith(prefix)}
    for name, values in importance.items():
        if not values.isfinite().all() or (values < 0).any():
            raise ValueError(f"the importance of {name} holds values that are negative or not finite")
    return importance


def _spectrum(tensors: dict[str, Tensor], prefix: str) -> Spectrum:
    spectrum = Spectrum(tensors[f"{prefix}/values"], tensors[f"{prefix}/vectors"], tensors[f"{prefix}/total"])
    if spectrum.values_K.shape != spectrum.vectors_DK.shape[1:]:
        raise ValueError(f"{prefix} has values and vectors of different numbers")
    if not all(part.isfinite().all() for part in spectrum):
        raise ValueError(f"{prefix} holds values that are not finite")
    return spectrum
