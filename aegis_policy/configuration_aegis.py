"""What a user can set with `--policy.*`."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig
from lerobot.policies.rtc import RTCConfig

from aegis_policy.data.checks import check_features
from aegis_policy.data.relative import refuse_later_steps
from aegis_policy.optimizer_aegis import AegisAdamWConfig, AegisCosineConfig, check_betas, check_bits
from aegis_policy.protections import Protection
from aegis_policy.protections.aegis import AegisOptions
from aegis_policy.protections.choice import ProtectionChoice
from aegis_policy.protections.knowledge_insulation import KnowledgeInsulationOptions
from aegis_policy.protections.lora import LoraOptions
from aegis_policy.protections.penalties import AnchoredPenaltyOptions
from aegis_policy.protections.replay import ReplayOptions
from aegis_policy.support.errors import AegisError, shortened
from aegis_policy.support.finding import enforce
from aegis_policy.support.lerobot_flags import typed
from aegis_policy.support.ranges import Ranges, check_ranges, refuse_null

_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_STILL = ("freeze", "stop_gradient")
_OF_THE_BACKBONE = ("expert_only_steps", "optimizer_eps_backbone")
_PROBE = ("vqa_probe_data", "vqa_probe_samples")
_RANGES: Ranges = {
    "chunk_size": (1, 10_000),
    "num_inference_steps": (1, 10_000),
    "flow_samples": (1, 10_000),
    "expert_width": (1, 100_000),
    "expert_depth": (1, 1_000),
    "expert_heads": (1, 100_000),
    "lora_rank": (1, 100_000),
    "lora_alpha": (1, 1_000_000),
    "penalty": (0, 1_000_000),
    "replay_batch_size": (0, 100_000),
    "replay_samples": (1, math.inf),
    "action_bins": (1, math.inf),
    "vqa_probe_freq": (0, math.inf),
    "vqa_probe_samples": (1, math.inf),
    "optimizer_lr": (0, 1_000),
    "optimizer_lr_backbone": (0, 1_000),
    "optimizer_eps": (0, 1),
    "optimizer_eps_backbone": (0, 1),
    "optimizer_weight_decay": (0, 1_000),
    "optimizer_grad_clip_norm": (0, math.inf),
    "scheduler_warmup_steps": (0, math.inf),
    "expert_only_steps": (0, math.inf),
}
"""What takes memory or time, whatever the data, has an end."""


@PreTrainedConfig.register_subclass("aegis")
@dataclass
class AegisConfig(
    ProtectionChoice,
    AegisOptions,
    AnchoredPenaltyOptions,
    KnowledgeInsulationOptions,
    LoraOptions,
    ReplayOptions,
    PreTrainedConfig,
):
    """A vision-language model with a flow-matching action expert, and how the model is kept from forgetting.

    Options of protections are the fields of the dataclasses that this one inherits; they are described there.

    Attributes:
        vlm: `embedded`, a transformers directory, or a hub id. A checkpoint carries its own copy.
        backbone_depth: how many of its decoder layers the policy runs, the first ones; by default all. The expert reads
            these, and of the decoder they alone learn; all of them answer questions, and read the tokens of
            `knowledge_insulation`.
        protection: `none`, `freeze`, `stop_gradient`, `lora`, `w2_penalty`, `l2_sp`, `decoupled_l2_sp`, `maps`, `ewc`,
            `distill`, `replay`, `knowledge_insulation` or `aegis`; see `aegis_policy.protections`. Options of another
            one are refused.
        vqa_probe_freq: ask the backbone questions before the first training step and after every so many (0: never);
            the training log shows their accuracy until the next time, and how their gradient lies to the anchor.
        vqa_probe_data, vqa_probe_samples: which questions (as `replay_data`; a benchmark's validation split), and
            how many; or `text:FILE.txt`, running text, whose reading the log compares with the first one.
        instruction: what the policy is told, always, where data or environment say nothing of use (PushT, ALOHA).
        train_vision_tower, train_projector: train these too (with the backbone's learning rate).
            Token embeddings, final norm and language-model head never train (but for the entries that
            `knowledge_insulation` reserves): no layer's anchor guards them, and the flow loss does not even reach
            the head.
        chunk_size: actions predicted at once, H.
        n_action_steps: how many of them are carried out before the next prediction.
        num_inference_steps: Euler steps from noise to a chunk.
        use_relative_actions: predict actions less the state in which they are predicted, in normalised units of their
            own: the dataset's statistics must be of such (`check_relative`). The state of later steps of a chunk is
            another one, so that `n_action_steps` must be 1; in real-time chunking it counts for nothing.
        relative_exclude_joints: of actions whose name contains one of these, nothing is taken.
        rtc_config: LeRobot's settings of real-time chunking, for `predict_action_chunk`; of its rollout,
            `--inference.rtc` takes their place.
        compile_model: compile the action expert for the steps of a chunk (`torch.compile`); the first chunk waits for
            that, those of instructions of another length do not. Training is as without.
        compile_mode: `default`, `reduce-overhead`, `max-autotune` or `max-autotune-no-cudagraphs`, as `torch.compile`
            has them; `lerobot-rollout --torch_compile_mode` is not read. CUDA graphs (the second and the third) are
            recorded for each length of a prefix, and for evaluation alone: a rollout's threads share none.
        expert_width, expert_depth, expert_heads: size of the action expert. The defaults (3.9 M parameters on
            the embedded VLM) suit a CPU; for a model of billions of parameters, 1024, 18 and 16 are usual.
        expert_optimizer: `adamw`, or `muon` for the matrices of the expert's blocks, at `optimizer_lr` too, which it
            wants three times as high (docs/performance.md); betas, eps and bits are AdamW's alone.
        flow_samples: points of the noise-action path (noise and time) that the expert learns from for each
            observation of a training step. The backbone runs once for all of them, the expert once for
            each; CogACT (arXiv 2411.19650) calls them repeated diffusion steps.
        time_alpha, time_beta, time_max: flow times are time_max (1 - Beta(time_alpha, time_beta)).
        dtype: `float32` or `bfloat16`, the precision of matrix products; weights that learn stay float32.
        frozen_dtype: of the VLM's weights that do not learn, while training: `float32`, or `bfloat16` beside a
            `dtype` of bfloat16, which rounds them in every product anyway.
        gradient_checkpointing: recompute the backbone's activations instead of keeping them.
        optimizer_lr, optimizer_lr_backbone: peak learning rates of the action expert and of the backbone. The first is
            for an expert of the default size; wider ones usually want less.
        optimizer_bits: 32, or 8 for the moments of AdamW in blocks of 8 bits (arXiv 2110.02861; needs bitsandbytes).
        optimizer_eps_backbone: AdamW's eps for the backbone, if not `optimizer_eps`: a large one lets weights whose
            gradients are small move less.
        scheduler_warmup_steps: linear warm-up, at most a tenth of `--steps`, before a cosine that ends there.
        expert_only_steps: so many steps the backbone stays as it is while the expert learns, then it warms up (as in
            APT, arXiv 2606.12366). Its gradient is taken all the same, and counts in `optimizer_grad_clip_norm`.
        vlm_fingerprint, anchor_info: which pretrained model and which anchor this policy started from;
            written by the policy, read from checkpoints.
        constant_dimensions: which dimensions of `observation.state` and `action` never changed in the data; the policy
            reads them as 0. Written and read in the same way.
        action_feature_names: what the dataset calls the dimensions of an action. Written and read in the same way.
    """

    vlm: str = "embedded"
    backbone_depth: int | None = None

    vqa_probe_freq: int = 0
    vqa_probe_data: str = "tabletop"
    vqa_probe_samples: int = 100
    instruction: Any = None  # a text; of one that YAML reads as another thing, draccus would make its repr
    train_vision_tower: bool = False
    train_projector: bool = False

    chunk_size: int = 16
    n_action_steps: int = 2
    num_inference_steps: int = 10
    use_relative_actions: bool = False
    relative_exclude_joints: tuple[str, ...] = ("gripper",)
    rtc_config: RTCConfig | None = None
    compile_model: bool = False
    compile_mode: str = "default"

    expert_width: int = 192
    expert_depth: int = 6
    expert_heads: int = 6
    expert_optimizer: str = "adamw"

    flow_samples: int = 4
    time_alpha: float = 1.5
    time_beta: float = 1.0
    time_max: float = 0.999

    dtype: str = "float32"
    frozen_dtype: str = "float32"
    gradient_checkpointing: bool = False

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )

    optimizer_lr: float = 2e-3
    optimizer_lr_backbone: float = 1e-4
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_eps_backbone: float | None = None
    optimizer_weight_decay: float = 1e-3
    optimizer_grad_clip_norm: float = 1.0
    optimizer_bits: int = 32
    scheduler_warmup_steps: int = 100
    expert_only_steps: int = 0

    vlm_fingerprint: str | None = None
    anchor_info: dict[str, str] | None = None
    constant_dimensions: dict[str, list[int]] | None = None
    action_feature_names: list[str] | None = None

    push_to_hub: bool = False

    def __post_init__(self) -> None:
        for name in ("vlm", "anchor_path", "instruction", "replay_data", "vqa_probe_data"):
            setattr(self, name, typed(name, getattr(self, name)))
        self.anchor_path = None if self.anchor_path is None else Path(self.anchor_path)
        super().__post_init__()
        refuse_null(self, "--policy.")
        protection = self.resolve_options()
        self._refuse_what_changes_nothing(protection)
        protection.check_options()
        self._check_ranges()

    def _refuse_what_changes_nothing(self, protection: Protection) -> None:
        if not (protection.gradient_flows or protection.trains_decoder) and (
            self.train_vision_tower or self.train_projector
        ):
            raise AegisError(
                f"--policy.protection={self.protection} lets no gradient into the VLM, so "
                "--policy.train_vision_tower and --policy.train_projector must stay false."
            )
        self.refuse_idle(self._idle(protection))

    def _check_ranges(self) -> None:
        check_ranges(self, "--policy.", _RANGES)
        check_betas("--policy.optimizer_betas", self.optimizer_betas)
        check_bits("--policy.optimizer_bits", self.optimizer_bits)
        if self.instruction is not None and not isinstance(self.instruction, str):
            raise AegisError(f"--policy.instruction is no text but {self.instruction}: put it in quotes.")
        if self.instruction is not None and not self.instruction.encode(errors="ignore").strip():
            raise AegisError("--policy.instruction says nothing: give it a text, or leave it out.")
        if unknown := self.normalization_mapping.keys() - FeatureType.__members__.keys():
            raise AegisError(
                f"--policy.normalization_mapping has {shortened(sorted(unknown)[0])}: its keys are of "
                f"{', '.join(FeatureType.__members__)}."
            )
        if self.expert_optimizer not in ("adamw", "muon"):
            raise AegisError(
                f"--policy.expert_optimizer={self.expert_optimizer} is unknown: choose adamw or muon."
            )
        if self.compile_mode not in _COMPILE_MODES:
            raise AegisError(
                f"--policy.compile_mode={self.compile_mode} is unknown: choose one of {', '.join(_COMPILE_MODES)}."
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise AegisError(f"--policy.dtype={self.dtype} is unknown: choose float32 or bfloat16.")
        if self.frozen_dtype not in ("float32", self.dtype):
            raise AegisError(
                f"--policy.frozen_dtype={self.frozen_dtype} must be float32, or bfloat16 with --policy.dtype=bfloat16."
            )
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise AegisError(
                f"--policy.n_action_steps={self.n_action_steps} must lie between 1 and "
                f"--policy.chunk_size={self.chunk_size}."
            )
        refuse_later_steps(self)
        if self.rtc_config is not None and (self.rtc_config.execution_horizon or 0) < 1:
            raise AegisError(
                f"--policy.rtc_config.execution_horizon={self.rtc_config.execution_horizon} must be at least 1."
            )
        rtc = self.rtc_config
        if rtc is not None and rtc.enabled and rtc.execution_horizon > self.chunk_size:
            raise AegisError(
                f"--policy.rtc_config.execution_horizon={rtc.execution_horizon} must be at most "
                f"--policy.chunk_size={self.chunk_size}."
            )
        if self.n_obs_steps != 1:
            raise AegisError(f"--policy.n_obs_steps={self.n_obs_steps}: this policy reads one observation.")
        if not (0 < self.time_alpha <= 1_000 and 0 < self.time_beta <= 1_000 and 0 < self.time_max <= 1):
            raise AegisError(
                f"--policy.time_alpha={self.time_alpha} and --policy.time_beta={self.time_beta} must lie between 0 and "
                f"1000, --policy.time_max={self.time_max} between 0 and 1."
            )
        if self.expert_width % self.expert_heads:
            raise AegisError(
                f"--policy.expert_width={self.expert_width} must be a multiple of "
                f"--policy.expert_heads={self.expert_heads}."
            )

    def _idle(self, protection: Protection) -> dict[str, str]:
        """Fields that change nothing, and beside what."""
        unprobed = dict.fromkeys(
            _PROBE if self.vqa_probe_freq == 0 else (), "unless --policy.vqa_probe_freq is given too"
        )
        absolute = dict.fromkeys(
            () if self.use_relative_actions else ("relative_exclude_joints",),
            "unless --policy.use_relative_actions is given too",
        )
        still = self.protection in _STILL and not (self.train_vision_tower or self.train_projector)
        unmoved = dict.fromkeys(
            _OF_THE_BACKBONE if still else (),
            f"with --policy.protection={self.protection}, whose backbone does not learn",
        )
        return self.idle_options(protection) | unprobed | absolute | unmoved

    @property
    def action_dim(self) -> int:
        assert self.action_feature is not None
        return self.action_feature.shape[0]

    @property
    def state_dim(self) -> int:
        assert self.robot_state_feature is not None
        return self.robot_state_feature.shape[0]

    def validate_features(self) -> None:
        """Refuse a dataset or environment without cameras, state or actions in the form that the policy reads.

        Raises:
            AegisError: with the keys that are there.
        """
        enforce(check_features(self))

    def get_optimizer_preset(self) -> AegisAdamWConfig:
        return AegisAdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
            bits=self.optimizer_bits,
        )

    def get_scheduler_preset(self) -> AegisCosineConfig:
        return AegisCosineConfig(
            num_warmup_steps=self.scheduler_warmup_steps, expert_only_steps=self.expert_only_steps
        )

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None
