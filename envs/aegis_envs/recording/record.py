"""`aegis-record`: the entry point, light so that simulation workers do not import what the writer needs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aegis_envs.recording.sources import RecordConfig


def main() -> None:
    """Record demonstrations into a LeRobotDataset; see `aegis_envs.recording.sources.RecordConfig` for the flags."""
    from aegis_envs.recording.sources import RecordConfig
    from aegis_policy.support import cli

    cli.run(RecordConfig, _work)


def _work(config: "RecordConfig") -> None:
    from aegis_envs.recording.recorder import record

    record(config)


if __name__ == "__main__":
    main()
