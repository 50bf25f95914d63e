"""The optimizer LeRobot builds for the policy, AdamW (and Muon) that projects in `step()` where the protection asks,
and its schedule."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from lerobot.optim import OptimizerConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig, LRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from aegis_policy.isolation import MuonStep, ProjectedAdamW, ProjectedStep, Projector
from aegis_policy.support.errors import AegisError
from aegis_policy.support.ranges import Ranges, check_ranges, refuse_null


class PolicyParameters(list[dict[str, Any]]):
    """What a policy hands to the optimizer: parameter groups, and maybe projectors."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        projectors: Sequence[Projector],
        restored: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(groups)
        self.projectors = projectors
        self.restored = restored or {}
        """Fields of the optimizer's configuration that LeRobot is going to restore, whatever they say."""
        self.optimizer: AegisAdamWConfig | None = None
        """The configuration of the optimizer that has been built from these parameters."""
        self.built: ProjectedStep | None = None
        """The optimizer that has been built from these parameters."""

    @property
    def projects(self) -> bool:
        """Whether an optimizer that projects has been built from these parameters."""
        return self.built is not None

    def __getstate__(self) -> dict[str, Any]:
        """A copy has weights of its own, and no optimizer."""
        return {**self.__dict__, "built": None}


def parameter_groups(
    name: str,
    module: nn.Module,
    lr: float,
    undecayed: Iterable[nn.Parameter] = (),
    by_muon: Iterable[Tensor] = (),
    eps: float | None = None,
) -> list[dict[str, Any]]:
    """The groups, if not empty, of what may learn in `module`.

    Vectors (norms, biases) and `undecayed` do not decay; the matrices `by_muon` are Muon's. `eps` is AdamW's, if it
    is not that of the whole.
    """
    orthogonal = {id(p): p for p in by_muon if p.requires_grad}
    parameters = [p for p in module.parameters() if p.requires_grad and id(p) not in orthogonal]
    named = {id(p) for p in undecayed}
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in named]
    rest = [p for p in parameters if p.ndim < 2 or id(p) in named]
    own = {} if eps is None else {"eps": eps}
    groups: list[dict[str, Any]] = [
        {"params": decayed, "lr": lr, "name": name},
        {"params": rest, "lr": lr, "name": f"{name}_no_decay", "weight_decay": 0.0},
        {"params": [*orthogonal.values()], "lr": lr, "name": f"{name}_muon", "muon": True},
    ]
    return [group | own for group in groups if group["params"]]


_RANGES: Ranges = {
    "lr": (0, 1_000),
    "eps": (0, 1),
    "weight_decay": (0, 1_000),
    "grad_clip_norm": (0, math.inf),
}


def check_betas(flag: str, betas: tuple[float, float]) -> None:
    """Make sure that they are decays of averages.

    Raises:
        AegisError: one is not.
    """
    if not all(0 <= beta < 1 for beta in betas):
        raise AegisError(f"{flag}={betas} must be two numbers from 0 on and below 1.")


def check_bits(flag: str, bits: int) -> None:
    """Make sure that there are moments of this size.

    Raises:
        AegisError: there are none.
    """
    if bits not in (8, 32):
        raise AegisError(f"{flag}={bits} is unknown: choose 8 or 32.")


@OptimizerConfig.register_subclass("aegis_adamw")
@dataclass
class AegisAdamWConfig(OptimizerConfig):
    """AdamW over the policy's parameter groups; lets the projectors that come with them bend its step."""

    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-3
    grad_clip_norm: float = 1.0
    bits: int = 32
    """Size of AdamW's two moments of every weight: 32, or 8 (bitsandbytes). Muon's one has 32."""

    def __post_init__(self) -> None:
        refuse_null(self, "--optimizer.")
        check_ranges(self, "--optimizer.", _RANGES)
        check_betas("--optimizer.betas", self.betas)
        check_bits("--optimizer.bits", self.bits)

    def build(self, params: Any) -> torch.optim.Optimizer:
        """Make the optimizer.

        Raises:
            AegisError: `params` are bare parameters, which come without the projectors that protect them; or
                bitsandbytes is missing; or a flag would change nothing.
        """
        if not isinstance(params, PolicyParameters):
            raise AegisError(
                "--optimizer.type=aegis_adamw needs the parameter groups of an aegis policy: leave "
                "--use_policy_training_preset at true."
            )
        for name, before in params.restored.items():
            now = getattr(self, name)
            if (list(now) if isinstance(now, tuple) else now) != before:
                raise AegisError(
                    f"--optimizer.{name}={now} changes nothing when a training is resumed; LeRobot goes on with "
                    f"{before}: leave it out, or begin a new training with --policy.path=THE_CHECKPOINT."
                )
        params.optimizer = self
        options: dict[str, Any] = {
            "lr": self.lr,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }
        if self.bits == 8:
            params.built = adamw_8bit()(params, *params.projectors, **options)
        else:
            params.built = ProjectedAdamW(params, *params.projectors, fused=True, **options)
        return params.built


@cache
def adamw_8bit() -> type[ProjectedStep]:
    """AdamW with blockwise 8-bit moments (arXiv 2110.02861) and a projected step.

    Raises:
        AegisError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit as BitsAndBytes
    except ImportError as error:
        raise AegisError(
            "--policy.optimizer_bits=8 needs bitsandbytes: uv pip install '.[low_memory]' in a clone of this project."
        ) from error

    class AdamW8bit(BitsAndBytes):
        """Its state in tensors alone, none of them twice: what LeRobot's checkpoints can hold."""

        def state_dict(self) -> dict[str, Any]:
            whole: dict[str, Any] = super().state_dict()
            for state in whole["state"].values():
                if "step" not in state:
                    continue  # Muon's
                state["step"] = torch.tensor(float(state["step"]))
                moments = state[self._FSDP_WRAPPED_QUANT_STATE_KEY]
                for name in ("qmap1", "qmap2"):
                    moments.pop(name, None)
            return whole

        def load_state_dict(self, state_dict: dict[str, Any], *args: Any, **options: Any) -> None:
            super().load_state_dict(state_dict, *args, **options)
            for parameter, state in self.state.items():
                if "step" not in state:  # Muon's, which bitsandbytes does not move to where its weight is
                    state["momentum_buffer"] = state["momentum_buffer"].to(parameter.device)
                    continue
                state["step"] = int(state["step"])
                if state["state1"].dtype == torch.uint8:
                    state["qmap1"] = self.name2qmap["dynamic"].to(parameter.device)
                    state["qmap2"] = self.name2qmap["udynamic"].to(parameter.device)

    class ProjectedAdamW8bit(ProjectedStep, MuonStep, AdamW8bit):
        """It with a `ProjectedStep`, and Muon for groups with `muon=True`."""

    return ProjectedAdamW8bit


@LRSchedulerConfig.register_subclass("aegis_cosine")
@dataclass
class AegisCosineConfig(CosineAnnealingWithWarmupSchedulerConfig):
    """LeRobot's cosine that ends at `--steps`, with a warm-up of at most a tenth of them.

    Attributes:
        expert_only_steps: for so many steps the backbone's rate is zero; then it warms up to the cosine.
    """

    expert_only_steps: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self, "--scheduler.", {"num_warmup_steps": (0, math.inf), "expert_only_steps": (0, math.inf)}
        )

    def build(self, optimizer: torch.optim.Optimizer, num_training_steps: int) -> LambdaLR:
        """The schedule for `num_training_steps` steps.

        Raises:
            AegisError: the backbone would learn in none of them.
        """
        alone = self.expert_only_steps
        if alone >= num_training_steps > 0:
            raise AegisError(
                f"--policy.expert_only_steps={alone} leaves the backbone none of --steps={num_training_steps}: give "
                "fewer, or take --policy.protection=stop_gradient."
            )
        warmup = min(self.num_warmup_steps or 0, num_training_steps // 10)
        schedule = CosineAnnealingWithWarmupSchedulerConfig(warmup).build(optimizer, num_training_steps)
        if not alone:
            return schedule
        cosine = schedule.lr_lambdas[0]

        def of_the_backbone(step: int) -> float:
            return cosine(step) * min(1.0, max(0, step - alone + 1) / max(1, warmup))

        names = [str(group.get("name")) for group in optimizer.param_groups]
        return LambdaLR(
            optimizer, [of_the_backbone if name.startswith("backbone") else cosine for name in names]
        )
