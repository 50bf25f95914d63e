"""Entry points of the `aegis-*` commands, light so that rendering workers do not import what the commands need."""


def ablate() -> None:
    """`aegis-ablate`."""
    from aegis_eval.ablate import main

    main()


def action_error() -> None:
    """`aegis-action-error`."""
    from aegis_eval.action_error import main

    main()


def anchor() -> None:
    """`aegis-anchor`."""
    from aegis_eval.anchor import main

    main()


def compare() -> None:
    """`aegis-compare`."""
    from aegis_eval.compare import main

    main()


def demo() -> None:
    """`aegis-demo`."""
    from aegis_eval.demo import main

    main()


def drift() -> None:
    """`aegis-drift`."""
    from aegis_eval.drift import main

    main()


def export() -> None:
    """`aegis-export`."""
    from aegis_eval.export import main

    main()


def pretrain() -> None:
    """`aegis-pretrain`."""
    from aegis_eval.pretrain import main

    main()


def report() -> None:
    """`aegis-report`."""
    from aegis_eval.report import main

    main()


def swap() -> None:
    """`aegis-swap`."""
    from aegis_eval.swap import main

    main()


def vqa() -> None:
    """`aegis-vqa`."""
    from aegis_eval.vqa import main

    main()
