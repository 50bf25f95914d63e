"""The model card of a published policy stays the policy's own.

LeRobot 0.6.1 asks a policy for its card. Later versions write one from the configuration alone, over the card that the
policy was uploaded with.
"""

from functools import wraps
from typing import Any

from huggingface_hub import ModelCard
from lerobot.configs import PreTrainedConfig


def keep_card(config: PreTrainedConfig, text: str) -> None:
    """Have LeRobot publish `text` as the card of the policy with this configuration, where it asks no policy."""
    from lerobot.common import train_utils  # brings all of training

    written = getattr(train_utils, "generate_model_card", None)
    if written is None:
        return

    @wraps(written)
    def own_or_written(model_cfg: Any, *args: Any, **options: Any) -> ModelCard:
        return ModelCard(text) if model_cfg is config else written(model_cfg, *args, **options)

    train_utils.generate_model_card = own_or_written
