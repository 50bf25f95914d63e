"""What LeRobot would stumble over while it opens a dataset for a training, said before it does.

It hands metadata to a policy only once it has opened the data, written ImageNet's statistics over those of the cameras
and turned features into a policy's, and each of these ends with a KeyError or a TypeError where something is amiss.
Here the checks run when LeRobot asks for the first time what a policy wants of a dataset; policies of other packages
are left alone.

`check_when_opened` is called where LeRobot imports this plugin.
"""

from functools import wraps
from typing import Any

from lerobot.datasets import factory

from aegis_policy.data.checks import check_opening
from aegis_policy.support.finding import enforce

_POLICY = "aegis"


def check_when_opened() -> None:
    """Have datasets that are opened for a training of `--policy.type=aegis` looked at first, from now on."""
    resolve = factory.resolve_delta_timestamps
    if hasattr(resolve, "__wrapped__"):
        return

    @wraps(resolve)
    def resolve_checked(config: Any, meta: Any, *others: Any) -> Any:
        if getattr(config, "type", None) == _POLICY:
            enforce(check_opening(meta))
        return resolve(config, meta, *others)

    factory.resolve_delta_timestamps = resolve_checked
