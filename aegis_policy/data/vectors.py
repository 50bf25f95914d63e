"""State and actions as the policy takes them: floating vectors, whatever a dataset stores.

A processor step, saved with a checkpoint, that stands before LeRobot's normaliser. That one brings all statistics to
the dtype of the tensor at hand, which makes the deviations of whole numbers whole too (0.26 becomes 0); and LeRobot
reads vectors of length 1 as scalars, so that a batch of them looks like one vector.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import ProcessorStep, ProcessorStepRegistry
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from aegis_policy.data.step_names import VECTORS


@dataclass
@ProcessorStepRegistry.register(VECTORS)
class VectorsStep(ProcessorStep):
    """Float32 states (B, S) and actions (B, A) or (B, H, A), their last axis there even where its length is 1.

    Attributes:
        lengths: of the state and of the actions, by their keys.
    """

    lengths: dict[str, int] = field(default_factory=dict)

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Bring the transition's state and action, where it has them, to float32 and to their axes."""
        transition = transition.copy()
        observation = transition.get(TransitionKey.OBSERVATION)
        if observation is not None and OBS_STATE in observation:
            state = self._vector(OBS_STATE, observation[OBS_STATE], axes=2)
            transition[TransitionKey.OBSERVATION] = {**observation, OBS_STATE: state}
        action = transition.get(TransitionKey.ACTION)
        if isinstance(action, Tensor):
            padding = (transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}).get(f"{ACTION}_is_pad")
            axes = 2 if padding is None else padding.ndim + 1  # of a chunk, padding has all but the last
            transition[TransitionKey.ACTION] = self._vector(ACTION, action, axes)
        return transition

    def _vector(self, key: str, value: Any, axes: int) -> Tensor:
        vector = torch.as_tensor(value, dtype=torch.float32)
        return vector.unsqueeze(-1) if self.lengths.get(key) == 1 and vector.ndim < axes else vector

    def get_config(self) -> dict[str, Any]:
        """What a checkpoint's JSON keeps of the step."""
        return {"lengths": self.lengths}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """The features as they are: none is added, and their shapes were vectors all along."""
        return features
