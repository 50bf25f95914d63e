"""LeRobot's own policies with a VLM inside as they are, but that what their VLM learns is protected.

Their forward passes, processors, real-time chunking and compilation stay LeRobot's. What is added happens in
training: what may learn, what the loss is beside, how the optimizer steps; and a checkpoint holds the anchor.
"""

from pathlib import Path
from typing import Any, Self

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.eo1.modeling_eo1 import EO1Policy
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot.policies.pi0_fast.modeling_pi0_fast import PI0FastPolicy
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor

from aegis_policy.checkpoint import files
from aegis_policy.checkpoint.changes import VLA_RULES, check_changes, check_environment, optimizer_begun
from aegis_policy.checkpoint.checks import CONFIG_FILE, WEIGHTS_FILE
from aegis_policy.data.checks import action_names, check_vla_dataset
from aegis_policy.data.relative import check_base
from aegis_policy.isolation import Anchor
from aegis_policy.lerobot_vlas.configuration_vlas import (
    AegisEO1Config,
    AegisPI0Config,
    AegisPI0FastConfig,
    AegisPI05Config,
    AegisSmolVLAConfig,
    ProtectedVLAConfig,
)
from aegis_policy.lerobot_vlas.inner import parts_of, plain_type
from aegis_policy.lerobot_vlas.loading import require_loaded
from aegis_policy.optimizer_aegis import PolicyParameters
from aegis_policy.protections.holding import HoldsProtected
from aegis_policy.support import ranks
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_contents
from aegis_policy.support.finding import enforce
from aegis_policy.support.json_files import read_json
from aegis_policy.support.lerobot_flags import resuming
from aegis_policy.support.sharding import refuse_sharding
from aegis_policy.vlm.parts import VLMParts

_WRITTEN = ("base", "vlm_fingerprint", "anchor_info")


class ProtectedVLA(HoldsProtected):
    """Mixed into one of LeRobot's policies: a protection of the VLM inside.

    Args:
        config: LeRobot's, with the protection.
        checkpoint: the folder of this type whose weights the caller is going to load.
        dataset_meta: what LeRobot knows of the data: checked.
        options: LeRobot's own.
    """

    name: str
    config: ProtectedVLAConfig

    def __init__(
        self,
        config: ProtectedVLAConfig,
        *,
        checkpoint: Path | None = None,
        dataset_meta: Any | None = None,
        **options: Any,
    ) -> None:
        if dataset_meta is not None:
            if hasattr(config, "action_feature_names"):  # in which LeRobot has groups, where there are some
                config.action_feature_names = action_names(dataset_meta)
            enforce(check_vla_dataset(config, dataset_meta))
        super().__init__(config, dataset_meta=dataset_meta, **options)
        self.protection = config.resolve_options()
        self._checkpoint = checkpoint
        self._anchor: Anchor | None = None
        self._reference: dict[str, Tensor] | None = None
        self._adapted = checkpoint is not None and files.had_adapters(checkpoint)
        if self._adapted:
            self.protection.adapt(self._parts())

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **options: Any
    ) -> Self:
        """A policy of this type, or LeRobot's own that is to be protected, with its weights.

        Args:
            pretrained_name_or_path: a `pretrained_model` folder or a hub id.
            config: replaces that of the folder; LeRobot's own has no protection, so it needs one.
            options: as of LeRobot's.

        Raises:
            AegisError: the folder is of another type, lacks weights of this policy, or was trained under a protection
                that does not go on so.
        """
        flag = "--policy.pretrained_path"
        folder = files.find_checkpoint(pretrained_name_or_path, options, flag)
        if not (folder / CONFIG_FILE).is_file():
            raise AegisError(
                f"{flag}={pretrained_name_or_path} holds no config.json: give the `pretrained_model` folder of "
                "a policy."
            )
        held = read_json(folder / CONFIG_FILE)
        kind = held.get("type")
        if kind not in (cls.name, plain_type(cls.name)):
            raise AegisError(
                f"{pretrained_name_or_path} is a policy of type {kind}, and --policy.type={cls.name} takes a "
                f"{plain_type(cls.name)}, or one of its own type."
            )
        config = config or files.read_config(folder)
        if own := kind == cls.name:
            for name in _WRITTEN:
                setattr(config, name, held.get(name))
            enforce(check_changes(folder, config, resuming(), VLA_RULES))
            if options.get("dataset_meta") is None:
                enforce(check_environment(held, config))
        else:
            config.base = str(pretrained_name_or_path)
            enforce(check_base(held, config))
        policy: Self = super().from_pretrained(  # type: ignore[misc]  # LeRobot's
            folder, config=config, checkpoint=folder if own else None, **options
        )
        require_loaded(policy, folder / WEIGHTS_FILE)
        return policy

    def get_optim_params(self) -> PolicyParameters:
        """All that learns, in one group as LeRobot has it, with the projectors that bend its steps.

        Raises:
            AegisError: the run is sharded, the anchor is none of this VLM, or nothing would learn.
        """
        refuse_sharding(self)
        ranks.keep_group()
        if self._optimized is None:
            self._begin_training()
            learning = [p for p in self.parameters() if p.requires_grad]
            if not learning:
                raise AegisError(
                    f"--policy.protection={self.config.protection} leaves nothing of {self.name} to learn, which has "
                    "nothing beside its VLM: choose another."
                )
            restored = optimizer_begun(self._checkpoint) if self._checkpoint and resuming() else {}
            self._optimized = PolicyParameters(
                [{"params": learning, "name": self.name}], self.protection.projectors, restored
            )
        return self._optimized

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """As LeRobot's; in training, with what the protection adds to the loss.

        Raises:
            AegisError: nothing would project.
        """
        loss, figures = super().forward(*arguments, **options)
        if self.training and torch.is_grad_enabled():
            refuse_sharding(self)
            if self._optimized is None or (self.protection.projects and not self._optimized.projects):
                raise AegisError(
                    f"--policy.protection={self.config.protection} acts in the optimizer's step, and this run's "
                    "optimizer knows nothing of it: use --optimizer.type=aegis_adamw, which is the default as long as "
                    "--use_policy_training_preset stays true."
                )
            figures |= self.protection.weight_figures()
            if (penalty := self.protection.weight_penalty()) is not None:
                loss, figures = loss + penalty.loss, figures | penalty.figures
        return loss, figures

    def _begin_training(self) -> None:
        """Mark what may learn, and have the protection begin with the weights as they are now."""
        vlm, config = self._parts(), self.config
        if not self._adapted and any("lora_" in name for name, _ in self.named_parameters()):
            raise AegisError(
                f"--peft.* and {self.name} do not go together, for adapters of peft are in no checkpoint of it: use "
                "--policy.protection=lora."
            )
        if config.vlm_fingerprint is None:
            config.vlm_fingerprint = vlm.fingerprint()
        if not self._adapted:
            self.protection.adapt(vlm)
            self._adapted = True
        if self.protection.needs_anchor and not (config.base or config.anchor_path):
            raise AegisError(
                f"--policy.protection={config.protection} needs the anchor of a VLM, and this {self.name} begins from "
                "none: name a policy with --policy.pretrained_path."
            )
        if config.protection != "none":
            _freeze_words(vlm)
        if not self.protection.trains_decoder:
            vlm.model.requires_grad_(False)
        self.protection.narrow(vlm)
        self._anchor = files.find_anchor(config, self.protection, vlm, self._checkpoint)
        self._reference = files.find_reference(self.protection, vlm, self._checkpoint)
        self.protection.begin_training(vlm, self._anchor, self._reference)
        for coverage in self.protection.coverages():
            enforce(coverage.findings())

    def _parts(self) -> VLMParts:
        return parts_of(self, self.config.base or self.name)

    def _save_pretrained(self, save_directory: Path, **options: Any) -> None:
        """Write the policy as a whole, or nothing; the first rank alone, as others are called by newer versions."""
        if ranks.index() > 0:
            self.hold()  # as the first rank does, in `state_dict`
            return
        files.remove_left(save_directory)
        with atomic_contents(save_directory) as folder:
            super()._save_pretrained(folder, **options)  # type: ignore[misc]  # LeRobot's
            files.save_beside(folder, self._anchor, self._reference)


class AegisSmolVLAPolicy(ProtectedVLA, SmolVLAPolicy):
    """`smolvla` with a protection."""

    config_class = AegisSmolVLAConfig
    name = "aegis_smolvla"


class AegisPI0Policy(ProtectedVLA, PI0Policy):
    """`pi0` with a protection."""

    config_class = AegisPI0Config
    name = "aegis_pi0"


class AegisPI05Policy(ProtectedVLA, PI05Policy):
    """`pi05` with a protection."""

    config_class = AegisPI05Config
    name = "aegis_pi05"


class AegisPI0FastPolicy(ProtectedVLA, PI0FastPolicy):
    """`pi0_fast` with a protection."""

    config_class = AegisPI0FastConfig
    name = "aegis_pi0_fast"


class AegisEO1Policy(ProtectedVLA, EO1Policy):
    """`eo1` with a protection."""

    config_class = AegisEO1Config
    name = "aegis_eo1"


def _freeze_words(vlm: VLMParts) -> None:
    """Embeddings, final norm and head stay: no anchor is about them, and no loss reaches the head."""
    parts = (vlm.vision_tower, vlm.projector, vlm.decoder_layers)
    inside = {id(p) for part in parts for p in part.parameters()}
    for parameter in vlm.model.parameters():
        if id(parameter) not in inside:
            parameter.requires_grad_(False)
