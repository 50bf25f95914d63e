"""A model server of vla-eval (github.com/allenai/vla-evaluation-harness) for checkpoints of this package.

    pip install vla-eval
    python eval/harnesses/vla_eval_server.py --args.checkpoint=outputs/run/checkpoints/last/pretrained_model

vla-eval serves every policy of LeRobot, but imports no plugins and asks for the policy's type. Other options are
those of its own server for LeRobot's policies: `--args.image_keys`, `--args.state_key`, `--args.device`, `--port`.
"""

import sys
from typing import Any

from vla_eval.model_servers.lerobot import LeRobotModelServer
from vla_eval.model_servers.serve import run_server

import lerobot_policy_aegis  # noqa: F401  # registers the policies
from aegis_policy.checkpoint.files import find_checkpoint, read_config
from aegis_policy.support.errors import AegisError


class AegisModelServer(LeRobotModelServer):
    """Any of this package's policies.

    Args:
        checkpoint: a `pretrained_model` folder, or an id of the hub.
        options: of `LeRobotModelServer`.

    Raises:
        AegisError: there is no such checkpoint, or it cannot be used.
    """

    def __init__(self, checkpoint: str, **options: Any) -> None:
        folder = find_checkpoint(checkpoint, {}, flag="--args.checkpoint")
        super().__init__(read_config(folder).type, str(folder), **options)


def main() -> None:
    """Serve until ended; a checkpoint that cannot be used ends it with a sentence and status 2."""
    try:
        run_server(AegisModelServer)
    except AegisError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
