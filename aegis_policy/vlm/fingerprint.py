"""What tells one VLM's weights from another's: two short hashes, joined by a dash.

The first is of the decoder layers' names, shapes and first values. Anchors and checkpoints of earlier versions hold it
alone, and are compared by it alone. The second is of all values: vision tower, projector, embeddings, head and what
else a checkpoint of the model holds.

Values are hashed as bfloat16, so that neither the precision on disk nor the device matters. The second hash does not
ask for names either, nor how often a tied weight is listed: those differ between versions of transformers.
"""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

_FIRST_VALUES = 256


def fingerprint(model_type: str, decoder_layers: nn.Module, model: nn.Module) -> str:
    """The fingerprint of a model; reads all of its weights once, a second or two a billion of them.

    Args:
        model_type: its family.
        decoder_layers: those of its language model.
        model: all of it.
    """
    return f"{_of_decoder(model_type, decoder_layers)}-{_of_values(model.state_dict().values())}"


def same_weights(one: str | None, other: str | None) -> bool:
    """Whether two fingerprints may be of the same weights: no hash that both have differs; None has none."""
    return all(
        a == b for a, b in zip(*((each or "").split("-") for each in (one, other)), strict=False) if a and b
    )


def _of_decoder(model_type: str, decoder_layers: nn.Module) -> str:
    digest = hashlib.sha256(model_type.encode())
    for name, parameter in decoder_layers.named_parameters():
        digest.update(json.dumps([name, list(parameter.shape)]).encode())
        digest.update(_rounded(parameter.flatten()[:_FIRST_VALUES]).float().numpy())
    return digest.hexdigest()[:16]


def _of_values(tensors: Iterable[Tensor]) -> str:
    unique = {(x.data_ptr(), x.shape): x for x in tensors if x.is_floating_point()}
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
        digests = set(pool.map(_of_tensor, unique.values()))
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]


def _of_tensor(x: Tensor) -> bytes:
    digest = hashlib.sha256(json.dumps(list(x.shape)).encode())
    digest.update(_rounded(x).view(torch.int16).numpy())
    return digest.digest()


def _rounded(x: Tensor) -> Tensor:
    return x.detach().to(torch.bfloat16).cpu().contiguous()
