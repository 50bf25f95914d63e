"""`aegis-record`: the entry point, light so that simulation workers do not import what the writer needs."""


def main() -> None:
    """Record demonstrations into a LeRobotDataset; see `aegis_envs.sources.RecordConfig` for the flags."""
    from aegis_envs.recorder import RecordConfig, record
    from aegis_policy import cli

    cli.run(RecordConfig, record)


if __name__ == "__main__":
    main()
