"""`aegis-record`: the entry point, light so that simulation workers do not import what the writer needs."""


def main() -> None:
    """Record demonstrations into a LeRobotDataset; see `aegis_envs.recording.sources.RecordConfig` for the flags."""
    from aegis_envs.recording.recorder import RecordConfig, record
    from aegis_policy.support import cli

    cli.run(RecordConfig, record)


if __name__ == "__main__":
    main()
