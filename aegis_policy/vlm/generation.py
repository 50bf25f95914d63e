"""How a VLM ends and pads its answers. They are greedy, whatever its generation_config.json says of sampling or beams.

What the file says besides is kept for who uses an exported model otherwise, as far as transformers would save it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.finding import Finding
from aegis_policy.support.json_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_PENALTY = "repetition_penalty"
IF_THERE: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}
"""With these, `cached_file` of transformers returns None for a file that a model does not have."""


def load_generation(source: str, named: str, config: Any) -> tuple[GenerationConfig, list[Finding]]:
    """What a model's folder, or else its configuration, says of generation, with a warning where it is not kept whole.

    Args:
        source: what transformers loads.
        named: how errors call it.
        config: the model's configuration.

    Raises:
        AegisError: the file is no JSON mapping, or a token id or penalty in it is none.
    """
    try:
        file = cached_file(source, GENERATION_CONFIG_NAME, **IF_THERE)
        said = GenerationConfig.from_model_config(config).to_diff_dict() if file is None else read_json(file)
        needed = {key: said.get(key) for key in (*_IDS, _PENALTY)}
        if needed["pad_token_id"] == -1:  # how Llama's configurations say none
            needed["pad_token_id"] = None
    except Exception as error:  # whatever transformers makes of what it finds
        raise AegisError(
            f"{named} has no readable {GENERATION_CONFIG_NAME} ({one_line(error)}): take it from where the model came, "
            "or remove it."
        ) from error
    for key, value in needed.items():
        if value is not None and not (_is_penalty(value) if key == _PENALTY else _is_id(value, key)):
            raise AegisError(
                f"The {GENERATION_CONFIG_NAME} of {named} says {key}={value!r}, which it cannot be: correct it."
            )
    try:
        generation = GenerationConfig.from_dict(said)
        generation.validate(strict=True)
    except (ValueError, TypeError) as error:
        what = f"transformers would not save the {GENERATION_CONFIG_NAME} of {named} ({one_line(error)})"
        mend = "what answers do not need is left out of it, for they are greedy; correct it to be rid of this line"
        return GenerationConfig(**needed), [Finding("warning", what, mend)]
    return generation, []


def greedy(generation: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    """The same, for greedy answers that end and are padded as the tokenizer has it where the model does not say."""
    said = {key: getattr(generation, key) for key in _IDS}
    if said["eos_token_id"] is None:
        said["eos_token_id"] = tokenizer.eos_token_id
    if said["pad_token_id"] is None:
        said["pad_token_id"] = tokenizer.pad_token_id
    penalty = getattr(generation, _PENALTY)
    return GenerationConfig(**said, **({} if penalty is None else {_PENALTY: float(penalty)}))


class GoesOn(StoppingCriteria):
    """Stops nothing, and says after each token which of the answers have not ended.

    Args:
        model: whose generation_config says which tokens end an answer.
        tell: called with bool (N,).
    """

    def __init__(self, model: "PreTrainedModel", tell: Callable[[Tensor], object]) -> None:
        said = model.generation_config.eos_token_id
        ends = said if isinstance(said, list) else [] if said is None else [said]
        self._ends = torch.tensor(ends, dtype=torch.int64, device=model.device)
        self._goes_on_N: Tensor | bool = True
        self._tell = tell

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self._goes_on_N = self._goes_on_N & ~torch.isin(input_ids[:, -1], self._ends)
        self._tell(self._goes_on_N)
        return torch.zeros_like(self._goes_on_N)


def _is_id(value: Any, key: str) -> bool:
    several = value if key == "eos_token_id" and isinstance(value, list) else [value]
    return all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in several)


def _is_penalty(value: Any) -> bool:
    return isinstance(value, float | int) and 0 < value < float("inf")
