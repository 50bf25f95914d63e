"""`aegis-record`: the entry point, light so that simulation workers do not import what the writer needs."""

import sys
from collections.abc import Sequence


def main() -> None:
    """Record demonstrations into a LeRobotDataset; see `aegis_envs.recorder.RecordConfig` for the flags."""
    from aegis_envs.recorder import RecordConfig, record
    from aegis_policy import cli

    sys.argv[1:] = spell_out_switch(sys.argv[1:], "--video")
    cli.run(RecordConfig, record)


def spell_out_switch(arguments: Sequence[str], switch: str) -> list[str]:
    """`--switch` alone becomes `--switch=true`: draccus wants a value after every flag."""
    following = [*arguments[1:], "--"]
    return [
        f"{switch}=true" if argument == switch and after.startswith("--") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


if __name__ == "__main__":
    main()
