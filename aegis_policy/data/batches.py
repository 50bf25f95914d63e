"""A batch at the policy's door: what it must hold, and what each of its samples is told, or asked.

Batches are checked rather than the dataset's own key list, because LeRobot applies `--rename_map` on the way.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from aegis_policy.support.errors import AegisError, shortened

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis import AegisConfig

_DARKEST, _BRIGHTEST = -0.5, 2.0
"""Augmented pictures may lie a little outside of 0 to 1; those of -1 to 1 or 0 to 255 do not stay between these."""
QUERY_KIND, QUERY_TEXT = "query_kind", "query_text"
"""Keys of what `lerobot-rollout --interactive=true` asks, for which LeRobot 0.6.1 has no names."""
_AXES = {OBS_STATE: "(batch, values)", ACTION: "(batch, steps, values)"}


def check_batch(config: "AegisConfig", batch: Mapping[str, Any], with_actions: bool) -> None:
    """See that a batch has every camera, the state, the instruction and (for training) the actions.

    Raises:
        AegisError: a key is missing (with a table of both sides' keys), a vector has another length, or a camera other
            axes than (batch, 3, height, width).
    """
    wanted = [*config.image_features, OBS_STATE, *([ACTION] if with_actions else [])]
    missing = [key for key in wanted if key not in batch]
    if missing:
        given = sorted(key for key in batch if key.startswith("observation.") or key == ACTION)
        given = [key for key in given if not key.endswith("_is_pad")]
        raise AegisError(
            f"The policy expects {', '.join(missing)}, which the data lacks: map the data's keys with "
            f"""--rename_map='{{"their.key": "policy.key"}}' (cameras), or in the dataset itself (state, """
            f"actions, whose statistics are not renamed).\n{key_table(given, wanted)}"
        )
    if not all(says_something(text) for text in instructions(config, batch)):
        raise AegisError(
            "The data has no instruction (key `task`): this policy follows language, so record the dataset with a "
            "task text for every frame, give the environment a task_description, or say --policy.instruction=TEXT."
        )
    for key in config.image_features:
        _check_pictures(key, batch[key])
    lengths = {OBS_STATE: config.state_dim, **({ACTION: config.action_dim} if with_actions else {})}
    for key, length in lengths.items():
        _check_vector(key, batch[key], length)


def _check_pictures(key: str, given: Tensor) -> None:
    wanted = "and the policy reads colour pictures (batch, 3, height, width) of floats in [0, 1]"
    if given.ndim != 4 or given.shape[1] != 3:
        raise AegisError(f"{key} has shape {tuple(given.shape)}, {wanted}: bring its channels to that place.")
    if not given.is_floating_point():
        raise AegisError(f"{key} is of dtype {given.dtype}, {wanted}: divide it by 255.")
    if not given.numel():
        raise AegisError(f"{key} is empty, {wanted}: give a picture.")
    least, largest = torch.stack(given.aminmax()).tolist()
    if not (least >= _DARKEST and largest <= _BRIGHTEST):
        raise AegisError(
            f"{key} holds values from {least:.1f} to {largest:.1f}, {wanted}: bring them there, and see that no value "
            "is NaN."
        )


def _check_vector(key: str, given: Tensor, length: int) -> None:
    axes = _AXES[key]
    if given.ndim != axes.count(",") + 1:
        raise AegisError(
            f"{key} has shape {tuple(given.shape)}, and the policy reads {axes}: put the checkpoint's own processors "
            "before the policy."
        )
    if given.shape[-1] != length:
        raise AegisError(
            f"{key} has {given.shape[-1]} values in the data and {length} in the policy: train a "
            "new policy on this data, or use the data this checkpoint was trained for."
        )


def read_vector(config: "AegisConfig", batch: Mapping[str, Any], key: str) -> Tensor:
    """A batch's state or actions in float32, 0 in the dimensions that never changed in the data."""
    vector: Tensor = batch[key].float()
    constant = (config.constant_dimensions or {}).get(key)
    if not constant:
        return vector
    return vector.index_fill(-1, torch.tensor(constant, device=vector.device), 0.0)


def instructions(config: "AegisConfig", batch: Mapping[str, Any]) -> list[str]:
    """What each sample of a batch is told: `config.instruction`, or else its own text, or else nothing.

    LeRobot hands over an environment's internal name where it has no description (`transfer_cube` of ALOHA).
    """
    task = batch.get("task") if config.instruction is None else config.instruction
    if not task or isinstance(task, str):
        task = [task or ""] * len(batch[OBS_STATE])
    return [each if isinstance(each, str) else "" for each in task]


def read_question(config: "AegisConfig", batch: Mapping[str, Any]) -> tuple[np.ndarray, str]:
    """The question that a batch of one observation asks, and the picture (H, W, 3) uint8 that it is about.

    It is the first camera's, or that of the camera whose name the question begins with (`wrist: is it closed?`).

    Raises:
        AegisError: nothing is asked, or no question, or the picture is missing or none.
    """
    if (kind := batch.get(QUERY_KIND, "vqa")) != "vqa":
        raise AegisError(
            f"This policy answers questions (/vqa) and no query of kind {shortened(kind)}: it plans no subtasks, so "
            "say each of them yourself."
        )
    text = batch.get(QUERY_TEXT)
    if not says_something(text):
        raise AegisError(f"Nothing is asked: give the batch a question (key `{QUERY_TEXT}`).")
    named, _, question = text.partition(":")
    named = named.strip().casefold()
    cameras = [key for key in config.image_features if named in (key.casefold(), _last(key).casefold())]
    if len(cameras) > 1:
        raise AegisError(f"{named} may be {' or '.join(cameras)}: name one of them in full.")
    if not cameras or not says_something(question):
        cameras, question = list(config.image_features), text
    key = cameras[0]
    if key not in batch:
        raise AegisError(f"The question is about {key}, which the batch lacks: give it that picture.")
    _check_pictures(key, batch[key])
    if len(batch[key]) != 1:
        raise AegisError(
            f"The question is about {len(batch[key])} pictures of {key}: ask about one observation."
        )
    picture = (batch[key][0] * 255).round().clamp(0, 255).to(torch.uint8)
    return picture.permute(1, 2, 0).cpu().numpy(), question.strip()


def _last(key: str) -> str:
    """The last part of a name with dots."""
    return key.rpartition(".")[-1]


def says_something(text: object) -> TypeGuard[str]:
    """Whether an instruction is a text that a reader can see; pandas' and Arrow's nothings are none."""
    return isinstance(text, str) and any(each.isprintable() and not each.isspace() for each in text)


def key_table(given: Iterable[str], wanted: Iterable[str]) -> str:
    """Two columns, the data's keys beside the policy's; equal keys share a line."""
    given, wanted = list(given), list(wanted)
    rows = [(key, key) for key in wanted if key in given]
    rows += [("-", key) for key in wanted if key not in given]
    rows += [(key, "-") for key in given if key not in wanted]
    width = max(len("data"), *(len(left) for left, _ in rows))
    return "\n".join(f"  {left:<{width}}  {right}" for left, right in [("data", "policy"), *rows])
