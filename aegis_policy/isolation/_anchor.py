"""Everything that is kept of a pretrained model in order to protect it, to and from the tensors of its file."""

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from aegis_policy.isolation import _anchor_file
from aegis_policy.isolation._factors import LinearFactors
from aegis_policy.isolation._gaussian import AnchorError, GaussianAnchor
from aegis_policy.isolation._sketch import Spectrum


@dataclass(frozen=True, eq=False)
class Anchor:
    """A static anchor: what the pretrained activations were like on data that must not be forgotten.

    Attributes:
        gaussians: moments of the decoder layers' outputs, by group of tokens: `all`; files of before hold `image` and
            `text` too.
        factors: covariances of linear layers, by name.
        importance: Fisher information of single weights, by parameter name, relative to their mean.
        metadata: strings that say where the anchor comes from: `vlm`, `fingerprint`, `samples`, `source`, ...;
            `kind`, `format_version` and a checksum are added when it is saved.
    """

    gaussians: dict[str, GaussianAnchor] = field(default_factory=dict)
    factors: dict[str, LinearFactors] = field(default_factory=dict)
    importance: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, beside its place first, so that `path` is either whole or untouched.

        Eigenvectors are written as float16 (`select_blocks` makes those it takes orthonormal again), importances as
        bfloat16. A `Spectrum` that several layers share is written once.
        """
        _anchor_file.write(Path(path), self._tensors(), self.metadata | {_SHARED: json.dumps(self._shared())})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote; eigenvectors stay float16, and what layers shared is one object again.

        Covariances of output gradients, which earlier versions kept, are passed over.

        Raises:
            AnchorError: no such file, not a whole one, another kind of file or another format, damaged contents,
                tensors that are missing, unknown or of another dtype or shape, values that cannot be.
        """
        tensors, metadata, vouched_for = _anchor_file.read(Path(path))
        try:
            gaussians, factors, importance = _contents(tensors, _sharing(metadata.pop(_SHARED, "{}")))
            if not vouched_for:
                _require_orthonormal(factors)
        except AnchorError as error:
            raise AnchorError(f"{error.fault} in {path}", error.mend) from error
        except (ValueError, RuntimeError) as error:
            raise AnchorError(f"The anchor {path} is not whole ({error})") from error
        return cls(gaussians, factors, importance, metadata)

    def part(
        self,
        *,
        gaussians: Iterable[str] = (),
        factors: bool = False,
        importance: bool = False,
    ) -> Self:
        """An anchor that holds only what is named here: groups of tokens, linear layers, single weights.

        Its tensors are copies. Those of `load` are mapped from the file, all of which stays in memory as long as one
        of them does.

        Raises:
            KeyError: a group that it does not hold.
        """
        return replace(
            self,
            gaussians=deepcopy({name: self.gaussians[name] for name in gaussians}),
            factors=deepcopy(self.factors) if factors else {},
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
        shared = self._shared()
        for name, layer in self.factors.items():
            if name not in shared:
                tensors[f"inputs/{name}/values"] = layer.inputs.values_K
                tensors[f"inputs/{name}/vectors"] = layer.inputs.vectors_DK.half()
                tensors[f"inputs/{name}/total"] = layer.inputs.total
            if layer.gradient_K is not None:
                tensors[f"gradient/{name}"] = layer.gradient_K
        for name, importance in self.importance.items():
            tensors[f"importance/{name}"] = importance.bfloat16()
        return tensors

    def _shared(self) -> dict[str, str]:
        """Layers whose inputs' spectrum lies in the same memory as that of an earlier one, with its name."""
        first: dict[tuple[object, ...], str] = {}
        owners = {
            name: first.setdefault(tuple((x.data_ptr(), x.shape) for x in layer.inputs), name)
            for name, layer in self.factors.items()
        }
        return {name: owner for name, owner in owners.items() if name != owner}


_F32 = (torch.float32, torch.float64)
_PARTS: dict[str, dict[str, tuple[torch.dtype, ...]]] = {
    "gaussian": {"mean": _F32, "std": _F32, "count": (torch.int64,), "noise": _F32},
    "inputs": {"values": _F32, "vectors": (torch.float16,), "total": _F32},
    "gradient": {"": _F32},
    "importance": {"": (torch.bfloat16,)},
}
"""First word of a tensor's name -> its last, and the dtypes it may have."""
_OPTIONAL = {"noise"}
_FORMER = "outputs/"
"""How the names of tensors begin that earlier versions kept."""
_SHARED = "shared_inputs"
"""Key of the file's header under which layers stand that share another's tensors of `inputs`, with its name."""
_NEARLY = 5e-3
"""By how much float16 vectors may miss being orthonormal, and eigenvalues add up to more than their trace."""

_Contents = tuple[dict[str, GaussianAnchor], dict[str, LinearFactors], dict[str, Tensor]]


def _sharing(written: str) -> dict[str, str]:
    """The names of layers that share another's inputs, with its name.

    Raises:
        ValueError: these are none.
    """
    shared = json.loads(written)
    if not isinstance(shared, dict) or not all(isinstance(owner, str) for owner in shared.values()):
        raise ValueError(f"{_SHARED} does not name layers")
    return shared


def _contents(tensors: Mapping[str, Tensor], shared: Mapping[str, str]) -> _Contents:
    """What the tensors of a file make up, with the layers that share another's inputs.

    Raises:
        ValueError, RuntimeError: it is no anchor.
    """
    found: dict[str, dict[str, dict[str, Tensor]]] = {word: {} for word in _PARTS}
    for key, tensor in tensors.items():
        if key.startswith(_FORMER):
            continue
        word, _, rest = key.partition("/")
        name, _, part = (rest, "", "") if "" in _PARTS.get(word, {}) else rest.rpartition("/")
        if part not in _PARTS.get(word, {}) or not name:
            raise ValueError(f"{key!r} is no part of an anchor")
        if tensor.dtype not in _PARTS[word][part]:
            raise ValueError(f"{key} is of {str(tensor.dtype).removeprefix('torch.')}")
        found[word].setdefault(name, {})[part] = tensor
    if not tensors:
        raise ValueError("it holds nothing")
    for word, names in found.items():
        for name, parts in names.items():
            if missing := sorted(_PARTS[word].keys() - parts.keys() - _OPTIONAL):
                raise ValueError(f"{word}/{name}/{missing[0]} is missing")
    inputs = {name: _spectrum(f"inputs/{name}", **parts) for name, parts in found["inputs"].items()}
    if missing := sorted(set(shared.values()) - inputs.keys()):
        raise ValueError(f"inputs/{missing[0]} is missing, which other layers share")
    if twice := sorted(shared.keys() & inputs.keys()):
        raise ValueError(f"inputs/{twice[0]} is there, and said to be another layer's")
    inputs |= {name: inputs[owner] for name, owner in shared.items()}
    if alone := sorted(found["gradient"].keys() - inputs.keys()):
        raise ValueError(f"inputs/{alone[0]} is missing")
    gradients = {name: _gradient(name, inputs[name], parts[""]) for name, parts in found["gradient"].items()}
    return (
        {name: _gaussian(f"gaussian/{name}", **parts) for name, parts in found["gaussian"].items()},
        {name: LinearFactors(spectrum, gradients.get(name)) for name, spectrum in inputs.items()},
        {name: _importance(name, parts[""]) for name, parts in found["importance"].items()},
    )


def _gaussian(
    key: str, mean: Tensor, std: Tensor, count: Tensor, noise: Tensor | None = None
) -> GaussianAnchor:
    if noise is not None and (noise.shape != mean.shape or not noise.isfinite().all() or (noise < 0).any()):
        raise ValueError(f"{key}/noise is of another shape, negative or not finite")
    return GaussianAnchor(mean, std, int(count), noise)


def _spectrum(key: str, values: Tensor, vectors: Tensor, total: Tensor) -> Spectrum:
    if vectors.ndim != 2 or values.shape != vectors.shape[1:] or total.ndim:
        raise ValueError(f"{key} has values and vectors of different numbers")
    if not 0 < len(values) <= len(vectors):
        raise ValueError(f"{key} has {len(values)} directions of {len(vectors)} inputs")
    if not all(part.isfinite().all() for part in (values, vectors, total)):
        raise ValueError(f"{key} holds values that are not finite")
    if (values < 0).any() or not 0 < values.sum() <= total * (1 + _NEARLY):
        raise ValueError(f"{key} has eigenvalues that are negative or more than their sum")
    if (values.diff() > 0).any():  # the leading ones are protected
        raise ValueError(f"{key} has eigenvalues that do not descend")
    return Spectrum(values, vectors, total)


def _gradient(name: str, inputs: Spectrum, shares: Tensor) -> Tensor:
    if shares.shape != inputs.values_K.shape:
        raise ValueError(
            f"gradient/{name} has {tuple(shares.shape)} shares of {len(inputs.values_K)} directions"
        )
    if not shares.isfinite().all() or (shares < 0).any() or shares.sum() > 1 + _NEARLY:
        raise ValueError(f"gradient/{name} holds shares that are negative, not finite or more than all of it")
    return shares


def _importance(name: str, values: Tensor) -> Tensor:
    values = values.float()
    if not values.isfinite().all() or (values < 0).any():
        raise ValueError(f"the importance of {name} holds values that are negative or not finite")
    return values


def _require_orthonormal(factors: Mapping[str, LinearFactors]) -> None:
    for name, layer in factors.items():
        vectors_DK = layer.inputs.vectors_DK.float()
        away = vectors_DK.T @ vectors_DK - torch.eye(vectors_DK.shape[1])
        if away.abs().max() > _NEARLY:
            raise ValueError(f"the directions of {name} are not orthonormal")
