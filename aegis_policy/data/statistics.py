"""A dataset's statistics: whether LeRobot's normaliser can divide by them, and what it makes of the data when it does.

The measure is the data themselves: `meta/stats.json` has their extremes, and an extreme that is many thousands once it
is normalised would be all that a training sees. Dimensions that never change are usual (a gripper that was not used)
and do no harm: the policy reads them as 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lerobot.configs import NormalizationMode
from lerobot.utils.constants import ACTION, OBS_STATE
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from aegis_policy.support.finding import Finding

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig

    from aegis_policy.configuration_aegis import AegisConfig

Statistics = Mapping[str, Mapping[str, Any]]
_Vector = NDArray[np.float64]

_BOUNDS = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}
_EPS = 1e-8
"""LeRobot's, which it divides by where a spread is zero."""
_RUINOUS, _LOUD = 1e4, 100.0
"""Normalised values above which one dimension is the whole loss, and above which it is much of it. Of N frames, one
value can lie sqrt(N) standard deviations from the mean: 1,000 in a million."""
_TINY = 1e-6
"""A spread this small, absolutely or beside the values themselves, is noise of sensors or of float32."""
_OTHER = 10.0
"""Times that data reach further than those of a checkpoint and are in other units: degrees for radians are 57."""
_RECOMPUTE = "lerobot-edit-dataset --operation.type=recompute_stats"


def check_statistics(
    config: "PreTrainedConfig", statistics: Statistics | None, names: Mapping[str, Any] | None = None
) -> Iterator[Finding]:
    """Whether state and actions can be normalised, and which of their dimensions that would blow up.

    LeRobot renames a dataset's keys but not its statistics, and leaves a feature without statistics as it is: a
    renamed state would be trained on unnormalised.

    Args:
        config: which features there are and how each is normalised.
        statistics: feature key -> name -> values.
        names: feature key -> what its dimensions are called, as far as that is known.
    """
    features = {OBS_STATE: config.robot_state_feature, ACTION: config.action_feature}
    for key, feature in features.items():
        mode = (
            normalization_of(config, feature.type.value)
            if feature is not None
            else NormalizationMode.IDENTITY
        )
        if feature is None or mode not in _BOUNDS or len(feature.shape) != 1:
            continue
        given = (statistics or {}).get(key, {})
        unusable = [*_unusable(key, given, mode, tuple(feature.shape))]
        yield from unusable
        if not unusable:
            named = (names or {}).get(key)
            yield from _Dimensions.of(
                key, given, mode, named if isinstance(named, list | tuple) else ()
            ).check()


def check_kept(
    config: "AegisConfig", checkpoint: Path, statistics: Statistics | None, names: Mapping[str, Any]
) -> Iterator[Finding]:
    """Whether data fit the statistics that a checkpoint goes on normalising by: those it was trained with.

    Args:
        config: of the checkpoint.
        checkpoint: a `pretrained_model` folder; one whose statistics cannot be read is left to its own checks.
        statistics: of the data.
        names: feature key -> what its dimensions are called, as far as that is known.
    """
    own: dict[str, dict[str, Any]] = {}
    try:
        (file,) = checkpoint.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")
        for name, values in load_file(file).items():
            own.setdefault(name.rpartition(".")[0], {})[name.rpartition(".")[2]] = values
    except (OSError, ValueError, SafetensorError):
        return
    for key, feature in {OBS_STATE: config.robot_state_feature, ACTION: config.action_feature}.items():
        mode = (
            normalization_of(config, feature.type.value)
            if feature is not None
            else NormalizationMode.IDENTITY
        )
        given = (statistics or {}).get(key, {})
        least, most = (_numbers(given.get(name)) for name in ("min", "max"))
        if (
            mode not in _BOUNDS
            or least is None
            or most is None
            or not {*_BOUNDS[mode]} <= {*own.get(key, {})}
        ):
            continue
        kept = _Dimensions.of(key, own[key], mode, names.get(key, ()))
        if not kept.low.shape == least.shape == most.shape:
            continue
        reach = np.where(kept.constant, 0.0, kept.reached(least, most))
        if other := kept._named(reach > _OTHER * np.maximum(1.0, kept.reach)):
            yield Finding(
                "warning",
                f"{key} of this dataset reaches {reach.max():.0f} once it is normalised as the checkpoint was trained, "
                f"in {other}: its values are of another size than those that the policy knows",
                "give the data that it was trained on, or data in the same units; to train on others, begin from the "
                "checkpoint with --policy.path instead of resuming it",
            )


def constant_dimensions(config: "AegisConfig", statistics: Statistics) -> dict[str, list[int]] | None:
    """Which dimensions of state and actions never change in the data, by key; None if all do.

    LeRobot divides by 1e-8 there: the last bit of the mean, or a robot that holds the joint a hair differently, would
    become a number of thousands. The way back needs no such care, for it multiplies.

    Args:
        config: which features there are and how each is normalised; what is not normalised is left out.
        statistics: that `check_statistics` found no error in.
    """
    found = {}
    for key, feature in {OBS_STATE: config.robot_state_feature, ACTION: config.action_feature}.items():
        mode = (
            normalization_of(config, feature.type.value)
            if feature is not None
            else NormalizationMode.IDENTITY
        )
        if mode in _BOUNDS and key in statistics:
            constant = _Dimensions.of(key, statistics[key], mode, ()).constant
            found[key] = np.flatnonzero(constant).tolist()
    return {key: each for key, each in found.items() if each} or None


def normalization_of(config: "PreTrainedConfig", kind: str) -> NormalizationMode:
    """How features of a type (`STATE`, `ACTION`, `VISUAL`) are normalised."""
    return NormalizationMode(config.normalization_mapping.get(kind, NormalizationMode.IDENTITY))


def _unusable(key: str, given: Any, mode: NormalizationMode, shape: tuple[int, ...]) -> Iterator[Finding]:
    """The first statistic that is missing or no vector of numbers."""
    for name in _BOUNDS[mode]:
        value = given.get(name) if isinstance(given, Mapping) else None
        found = _numbers(value)
        if found is not None and found.shape == shape and not _wrong(name, found).any():
            continue
        problem = "no" if value is None or np.size(value) == 0 else "no usable"
        yield Finding(
            "error",
            f"The dataset's statistics (meta/stats.json) have {problem} `{name}` of {key}, which {mode.value} "
            f"normalisation needs with shape {shape}{_culprit(name, found, shape)}",
            f"name the key so in the dataset (--rename_map does not rename statistics), compute them again with "
            f"{_RECOMPUTE}, or set --policy.normalization_mapping",
        )
        return


def _wrong(name: str, found: _Vector) -> NDArray[np.bool_]:
    """Where a statistic cannot be."""
    return ~np.isfinite(found) | ((found < 0) & (name == "std"))


def _culprit(name: str, found: _Vector | None, shape: tuple[int, ...]) -> str:
    """What is wrong with values that are there."""
    if found is None or found.size == 0:
        return ""
    if found.shape != shape:
        return f" and which has {found.shape}"
    first = int(np.flatnonzero(_wrong(name, found))[0])
    return f" and which is {found[first]} in dimension {first}"


def _numbers(value: Any) -> _Vector | None:
    """Values as the normaliser has them, in float32 (but computed with in float64); None of what are no numbers."""
    if value is None:  # which numpy takes for a NaN
        return None
    try:
        with np.errstate(over="ignore"):
            return np.asarray(value, dtype=np.float64).astype(np.float32).astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class _Dimensions:
    """One feature's dimensions: what it is normalised by, and how far its values reach.

    Attributes:
        low, high: the two statistics of `mode` (of MEAN_STD: mean and deviation).
        least, most: the data's extremes; None where the statistics do not say.
    """

    key: str
    mode: NormalizationMode
    names: Sequence[Any]
    low: _Vector
    high: _Vector
    least: _Vector | None
    most: _Vector | None

    @classmethod
    def of(
        cls, key: str, given: Mapping[str, Any], mode: NormalizationMode, names: Sequence[Any]
    ) -> "_Dimensions":
        low, high = (np.asarray(_numbers(given[name]), dtype=np.float64) for name in _BOUNDS[mode])
        least, most = (_numbers(given.get(name)) for name in ("min", "max"))
        known = all(
            each is not None and each.shape == low.shape and np.isfinite(each).all() for each in (least, most)
        )
        return cls(key, mode, names, low, high, least if known else None, most if known else None)

    @property
    def spread(self) -> _Vector:
        """What is divided by, before LeRobot's 1e-8."""
        return self.high if self.mode is NormalizationMode.MEAN_STD else self.high - self.low

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Where no value differs from another, as far as the statistics say."""
        if self.least is None or self.most is None:
            return self.spread == 0
        return self.least == self.most

    @property
    def reach(self) -> _Vector:
        """The largest normalised value of each dimension; 0 where it is constant."""
        if self.least is None or self.most is None:
            return np.zeros_like(self.low)
        return np.where(self.constant, 0.0, self.reached(self.least, self.most))

    def reached(self, least: _Vector, most: _Vector) -> _Vector:
        """The largest normalised value of each dimension, of values that reach so far."""
        ends = np.stack([least, most])
        if self.mode is NormalizationMode.MEAN_STD:
            ends = (ends - self.low) / (self.spread + _EPS)
        else:
            ends = 2 * (ends - self.low) / np.where(self.spread == 0, _EPS, self.spread) - 1
        return np.asarray(np.abs(ends).max(0), dtype=np.float64)

    def check(self) -> Iterator[Finding]:
        """A line for each kind of dimension that is not as it should be."""
        names = " and ".join(_BOUNDS[self.mode])
        reach, constant = self.reach, self.constant
        size = np.abs(np.stack([self.low, self.high])).max(0)
        tiny = ~constant & (reach <= _LOUD) & (self.spread <= _TINY * np.maximum(1.0, size))
        if crossed := self._named(self.spread < 0):
            yield Finding(
                "error",
                f"The dataset's statistics (meta/stats.json) have {names} of {self.key} the wrong way round in "
                f"{crossed}",
                _RECOMPUTE,
            )
            return
        if ruined := self._named(reach > _RUINOUS):
            yield Finding(
                "error",
                f"{self.key} reaches {reach.max():.0e} once it is normalised by {names} (meta/stats.json) in {ruined}, "
                "which would be all that the training sees",
                f"compute the statistics again with {_RECOMPUTE}, or normalise otherwise with "
                "--policy.normalization_mapping",
            )
        if loud := self._named((reach > _LOUD) & (reach <= _RUINOUS)):
            yield Finding(
                "warning",
                f"{self.key} reaches {reach[reach <= _RUINOUS].max():.0f} once it is normalised by {names} in {loud}, "
                "and outliers weigh by their square",
                "look for frames that do not belong there, or normalise otherwise with --policy.normalization_mapping",
            )
        if still := self._named(constant):
            yield Finding(
                "warning",
                f"{self.key} never changes in {still}, of which a policy learns nothing",
                "harmless where nothing was meant to move; otherwise look at how it was recorded",
            )
        if tiny_ones := self._named(tiny):
            yield Finding(
                "warning",
                f"{self.key} changes by {self.spread[tiny].max():.0e} or less in {tiny_ones}, and normalisation makes "
                "as much of that as of all else",
                "leave the dimension out of the dataset if it is noise, or store it in a smaller unit",
            )

    def _named(self, which: NDArray[np.bool_]) -> str:
        """Dimensions by number and name, the first few of many; empty where there is none."""
        found = [int(index) for index in np.flatnonzero(which)]
        named = len(self.names) == len(which)
        said = [f"{index} ({self.names[index]})" if named else str(index) for index in found[:5]]
        if not found:
            return ""
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        return f"dimension{'s' if len(found) > 1 else ''} {', '.join(said)}{more}"
