"""What a user can set with `--policy.*` of a protected VLA: what LeRobot has, and the protection."""

from dataclasses import dataclass
from pathlib import Path

from lerobot.configs import PreTrainedConfig
from lerobot.policies.eo1.configuration_eo1 import EO1Config
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0_fast.configuration_pi0_fast import PI0FastConfig
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from aegis_policy.data.relative import refuse_later_steps
from aegis_policy.optimizer_aegis import AegisAdamWConfig
from aegis_policy.protections.aegis import AegisOptions
from aegis_policy.protections.choice import ProtectionChoice
from aegis_policy.protections.lora import LoraOptions
from aegis_policy.protections.penalties import AnchoredPenaltyOptions
from aegis_policy.support.errors import AegisError
from aegis_policy.support.lerobot_flags import typed


@dataclass
class ProtectedVLAConfig(
    ProtectionChoice, AegisOptions, AnchoredPenaltyOptions, LoraOptions, PreTrainedConfig
):
    """The fields of a protection, before those of one of LeRobot's policies.

    LeRobot runs the VLM in a way of its own, so a protection is one that asks for weights alone: `none`,
    `freeze`, `lora`, `l2_sp`, `decoupled_l2_sp`, `maps`, `ewc`, or `aegis` with its default anchor. Their options are
    described where they are.

    Attributes:
        base: the policy whose VLM is protected, as `--policy.pretrained_path` named it. Written by the policy, as are
            the next two.
        vlm_fingerprint, anchor_info: which VLM and which anchor this policy started from.
    """

    base: str | None = None
    vlm_fingerprint: str | None = None
    anchor_info: dict[str, str] | None = None
    push_to_hub: bool = False

    def __post_init__(self) -> None:
        self.anchor_path = None if self.anchor_path is None else Path(typed("anchor_path", self.anchor_path))
        super().__post_init__()
        protection = self.resolve_options()
        if not protection.of_weights:
            raise AegisError(
                f"--policy.protection={self.protection}{_kind(self)} asks for more than weights, and "
                f"{self.type} runs its VLM in LeRobot's way: choose none, freeze, lora, l2_sp, decoupled_l2_sp, "
                "maps, ewc, or aegis with --policy.anchor=subspace."
            )
        self.refuse_idle(self.idle_options(protection))
        protection.check_options()
        refuse_later_steps(self)
        if getattr(self, "train_expert_only", False):
            raise AegisError(
                "--policy.train_expert_only=true is --policy.protection=freeze here: leave it out and say that."
            )

    def get_optimizer_preset(self) -> AegisAdamWConfig:
        """AdamW with LeRobot's settings for this policy, and the projection."""
        preset = super().get_optimizer_preset()
        return AegisAdamWConfig(
            lr=preset.lr,
            betas=preset.betas,
            eps=preset.eps,
            weight_decay=preset.weight_decay,
            grad_clip_norm=preset.grad_clip_norm,
        )


def _kind(config: ProtectedVLAConfig) -> str:
    return f" with --policy.anchor={config.anchor}" if config.protection == "aegis" else ""


@PreTrainedConfig.register_subclass("aegis_smolvla")
@dataclass
class AegisSmolVLAConfig(ProtectedVLAConfig, SmolVLAConfig):
    """`smolvla` with a protection."""

    train_expert_only: bool = False


@PreTrainedConfig.register_subclass("aegis_pi0")
@dataclass
class AegisPI0Config(ProtectedVLAConfig, PI0Config):
    """`pi0` with a protection."""


@PreTrainedConfig.register_subclass("aegis_pi05")
@dataclass
class AegisPI05Config(ProtectedVLAConfig, PI05Config):
    """`pi05` with a protection."""


@PreTrainedConfig.register_subclass("aegis_pi0_fast")
@dataclass
class AegisPI0FastConfig(ProtectedVLAConfig, PI0FastConfig):
    """`pi0_fast` with a protection.

    Its words stand for the actions of a whole chunk, and LeRobot reads `n_action_steps` actions from them: of fewer,
    all are others than those that were learned.
    """

    def __post_init__(self) -> None:
        if self.use_relative_actions and self.chunk_size > 1:
            raise AegisError(
                f"--policy.use_relative_actions=true does not go with {self.type}: LeRobot reads its words as a whole "
                "chunk, whose later actions would be added to another state than they were predicted in; leave it out."
            )
        if self.n_action_steps != self.chunk_size:
            raise AegisError(
                f"--policy.n_action_steps={self.n_action_steps} must be --policy.chunk_size={self.chunk_size}: LeRobot "
                f"reads the words of a whole chunk as the actions of --policy.n_action_steps, which are others."
            )
        super().__post_init__()


@PreTrainedConfig.register_subclass("aegis_eo1")
@dataclass
class AegisEO1Config(ProtectedVLAConfig, EO1Config):
    """`eo1` with a protection."""
