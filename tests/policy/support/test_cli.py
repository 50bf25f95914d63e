"""What all `aegis-*` commands do with their flags."""

from dataclasses import dataclass

import pytest

from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError


@dataclass
class Flags:
    quick: bool = False
    dry_run: bool = True
    seeds: int = 3
    name: str = "x"


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Flags:
    configs: list[Flags] = []
    monkeypatch.setattr("sys.argv", ["aegis-test", *arguments])
    cli.run(Flags, configs.append)
    return configs[0]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], Flags()),
        (["--quick"], Flags(quick=True)),
        (["--quick", "--seeds=2"], Flags(quick=True, seeds=2)),
        (["--quick", "--dry_run", "false"], Flags(quick=True, dry_run=False)),
        (["--seeds", "2", "--quick=true", "--name=--quick"], Flags(quick=True, seeds=2, name="--quick")),
    ],
)
def test_a_switch_needs_no_value(monkeypatch, arguments, expected):
    assert parsed(monkeypatch, *arguments) == expected


def test_an_error_of_the_user_ends_with_one_sentence_and_status_2(monkeypatch, capsys):
    def refuse(flags: Flags) -> None:
        raise AegisError(f"--seeds={flags.seeds} is too many: give fewer.")

    monkeypatch.setattr("sys.argv", ["aegis-test", "--seeds=9"])
    with pytest.raises(SystemExit) as ended:
        cli.run(Flags, refuse)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --seeds=9 is too many: give fewer.\n"
