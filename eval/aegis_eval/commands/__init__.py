"""Entry points of the `aegis-*` commands, light so that rendering workers do not import what the commands need."""


def ablate() -> None:
    """`aegis-ablate`."""
    from aegis_eval.commands.ablate import main

    main()


def action_error() -> None:
    """`aegis-action-error`."""
    from aegis_eval.commands.action_error import main

    main()


def anchor() -> None:
    """`aegis-anchor`."""
    from aegis_eval.commands.anchor import main

    main()


def compare() -> None:
    """`aegis-compare`."""
    from aegis_eval.commands.compare import main

    main()


def demo() -> None:
    """`aegis-demo`."""
    from aegis_eval.commands.demo import main

    main()


def drift() -> None:
    """`aegis-drift`."""
    from aegis_eval.commands.drift import main

    main()


def export() -> None:
    """`aegis-export`."""
    from aegis_eval.commands.export import main

    main()


def pretrain() -> None:
    """`aegis-pretrain`."""
    from aegis_eval.commands.pretrain import main

    main()


def report() -> None:
    """`aegis-report`."""
    from aegis_eval.commands.report import main

    main()


def swap() -> None:
    """`aegis-swap`."""
    from aegis_eval.commands.swap import main

    main()


def vqa() -> None:
    """`aegis-vqa`."""
    from aegis_eval.commands.vqa import main

    main()
