"""How many seconds each kind of stage takes: for the plan's estimate and the bar, never for a result.

Measured with the embedded VLM and software rendering on two cores of an AMD EPYC, one stage at a time on both. Other
machines differ, which is why a plan that has begun goes by what its own stages took.
"""

_START_S = 2.0
"""Before a command does anything."""
_DEMONSTRATION_S = {"aegis_tabletop": 0.25, "aegis_metaworld": 1.4}
"""An episode of the expert, written to a dataset, by type of environment."""
_ROLLOUT_S = {"aegis_tabletop": 0.5, "aegis_metaworld": 3.0}
"""An episode of a policy, by type of environment; Meta-World's by its rates (`docs/metaworld.md`)."""
_QUESTION_S = 0.012
_TEXT_S = 10.0
_ANCHOR_S = 200.0
_DRIFT_S = 3 * _START_S
_FRAME_S = 0.04
"""A chunk drawn at a frame of a demonstration, with its error."""
_SAMPLE_S, _FLOW_SAMPLE_S = 0.1 / 16, 0.075 / 16
"""A sample of a training step, and each point of its noise-action path."""
_STEP_OVER_NONE = {
    "replay": 1.4,
    "knowledge_insulation": 1.7,
    "distill": 1.4,
    "gaussian": 1.2,
    "freeze": 0.82,
    "stop_gradient": 0.82,
}
"""A step of a variant, by its first word, over one of `none` (`benchmarks/step_cost.py`); others cost about as much."""


def recording(episodes: int, env: str = "aegis_tabletop") -> float:
    """Seconds that recording so many demonstrations takes."""
    return _START_S + _DEMONSTRATION_S[env] * episodes


def anchor() -> float:
    """Seconds that an anchor takes."""
    return _ANCHOR_S


def training(variant: str, *, steps: int, batch_size: int, flow_samples: int = 4) -> float:
    """Seconds that a training of a variant takes."""
    step = batch_size * (_SAMPLE_S + _FLOW_SAMPLE_S * flow_samples)
    return _START_S + steps * step * _STEP_OVER_NONE.get(variant.split()[0], 1.0)


def rollouts(episodes: int, tasks: int, env: str = "aegis_tabletop") -> float:
    """Seconds that so many episodes of each task take."""
    return _START_S + _ROLLOUT_S[env] * episodes * tasks


def questions(samples: int) -> float:
    """Seconds that so many answers take."""
    return _START_S + _QUESTION_S * samples


def text() -> float:
    """Seconds that a file of questions or of running text takes."""
    return _START_S + _TEXT_S


def swap(pairs: int, tasks: int) -> float:
    """Seconds that so many scenes of each task take, each twice."""
    return rollouts(2 * pairs, tasks)


def merging() -> float:
    """Seconds that a merged checkpoint takes."""
    return 2 * _START_S


def acting(scenes: int, kinds: int) -> float:
    """Seconds that questions of so many kinds take, two a scene."""
    return rollouts(2 * scenes, kinds)


def drift() -> float:
    """Seconds that comparing activations takes."""
    return _DRIFT_S


def action_error(frames: int) -> float:
    """Seconds that chunks at so many frames take."""
    return _START_S + _FRAME_S * frames


def readable(seconds: float) -> str:
    """A rough time, in words: minutes, from an hour and a half on hours."""
    minutes = seconds / 60
    return f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{max(minutes, 1):.0f} minutes"
