"""A model server of vla-eval (github.com/allenai/vla-evaluation-harness) for checkpoints of this package.

    pip install vla-eval
    python eval/harnesses/vla_eval_server.py --args.checkpoint=outputs/run/checkpoints/last/pretrained_model

vla-eval serves every policy of LeRobot, but imports no plugins and asks for the policy's type. Other options are
those of its own server for LeRobot's policies: `--args.image_keys`, `--args.state_key`, `--args.device`, `--port`.
"""

from typing import Any

from lerobot.configs import PreTrainedConfig
from vla_eval.model_servers.lerobot import LeRobotModelServer
from vla_eval.model_servers.serve import run_server

import lerobot_policy_aegis  # noqa: F401  # registers the policies


class AegisModelServer(LeRobotModelServer):
    """Any of this package's policies.

    Args:
        checkpoint: a `pretrained_model` folder, or an id of the hub.
        options: of `LeRobotModelServer`.
    """

    def __init__(self, checkpoint: str, **options: Any) -> None:
        super().__init__(PreTrainedConfig.from_pretrained(checkpoint).type, checkpoint, **options)


if __name__ == "__main__":
    run_server(AegisModelServer)
