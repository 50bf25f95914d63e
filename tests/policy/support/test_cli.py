"""What all `aegis-*` commands do with their flags."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError


@dataclass
class Flags:
    quick: bool = False
    dry_run: bool = True
    seeds: int = 3
    name: str = "x"
    kinds: list[str] = field(default_factory=list)


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
        (["--kinds=[a,b]"], Flags(kinds=["a", "b"])),
        (["--kinds", "[a]"], Flags(kinds=["a"])),
        (["--kinds=a"], Flags(kinds=["a"])),
        (["--kinds", "a,b"], Flags(kinds=["a", "b"])),
        (["--name=null"], Flags(name="null")),
        (["--seeds", "2", "--quick=true", "--name=--quick"], Flags(quick=True, seeds=2, name="--quick")),
    ],
)
def test_a_switch_needs_no_value(monkeypatch, arguments, expected):
    assert parsed(monkeypatch, *arguments) == expected


@dataclass
class Place:
    path: str | None = None


@dataclass
class Places:
    vqa: Place = field(default_factory=Place)
    out: Path = Path("a")
    runs: Path | None = None


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a+b",
            "a b",
            "a=b,c",
            "a:b",
            "a: b",
            "a #b",
            "007",
            "1e5",
            "true",
            "[a]",
            "{a}",
            "'a'",
            "- a",
            "1_000",
        ),
        *(
            "@a",
            "%a",
            "&a",
            "*a",
            "!a",
            "~",
            "~/a",
            "a\\b",
            'a"b',
            "größe",
            "\U0001f916",
            "a\u2028b",
            "--a",
            "x" * 300,
        ),
    ],
)
def test_a_path_is_what_was_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = Places(vqa=Place(name), out=Path(name), runs=Path(name))
    found: list[Places] = []
    for flags in ([f"--vqa.path={name}", f"--out={name}"], ["--vqa.path", name, "--out", name]):
        if name.startswith("-") and flags[0] == "--vqa.path":
            continue  # which no parser tells from a flag
        monkeypatch.setattr("sys.argv", ["aegis-test", *flags, f"--runs={name}"])
        cli.run(Places, found.append)
    assert all(each == typed for each in found)
    monkeypatch.setattr("sys.argv", ["aegis-test", "--vqa.path=null", "--runs=null"])
    cli.run(Places, found.append)
    assert found[-1] == Places()


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--name="], "--name has an empty value"),
        (["--name", ""], "--name has an empty value"),
        (["--name= "], "--name has an empty value"),
        (["--seeds="], "--seeds has an empty value"),
        (["--kinds="], "--kinds has an empty value"),
        (["--seeds=null"], "--seeds=null"),
        (["--seeds=~"], "--seeds=null"),
        (["--rate=nan"], "--rate=nan must be finite"),
        (["--rate=.inf"], "--rate=inf must be finite"),
        (["--rates=[0.1,nan]"], "--rates=[0.1, nan] must be finite"),
    ],
)
def test_a_flag_without_a_usable_value_is_named(arguments, named, monkeypatch, capsys):
    @dataclass
    class Numbers(Flags):
        rate: float = 0.1
        rates: list[float] = field(default_factory=list)

    monkeypatch.setattr("sys.argv", ["aegis-test", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.run(Numbers, print)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {named}") and len(printed.splitlines()) == 1


def test_a_flag_that_is_no_yaml_ends_with_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["aegis-test", "--seeds=@"])
    with pytest.raises(SystemExit):
        cli.run(Flags, print)
    assert capsys.readouterr().err.startswith("error: a flag is no YAML: while scanning")


def test_an_error_of_the_user_ends_with_one_sentence_and_status_2(monkeypatch, capsys):
    def refuse(flags: Flags) -> None:
        raise AegisError(f"--seeds={flags.seeds} is too many: give fewer.")

    monkeypatch.setattr("sys.argv", ["aegis-test", "--seeds=9"])
    with pytest.raises(SystemExit) as ended:
        cli.run(Flags, refuse)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --seeds=9 is too many: give fewer.\n"


def test_a_full_disk_ends_with_one_sentence_and_status_2(monkeypatch, capsys):
    def fill(flags: Flags) -> None:
        with Path("/dev/full").open("w") as file:
            file.write(flags.name)

    monkeypatch.setattr("sys.argv", ["aegis-test"])
    with pytest.raises(SystemExit) as ended:
        cli.run(Flags, fill)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert "No space left on device" in printed and len(printed.splitlines()) == 1


@dataclass
class Output:
    out: Path = Path("result.json")


def run_writing(monkeypatch, place: Path, command=lambda config: None, **kind: str) -> int | None:
    monkeypatch.setattr("sys.argv", ["aegis-test", f"--out={place}"])
    try:
        cli.run(Output, command, **(kind or {"file": "out"}))
    except SystemExit as ended:
        return ended.code
    return None


def test_what_a_command_cannot_write_it_says_before_its_work(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file" / "result.json"):
        assert run_writing(monkeypatch, place, lambda _: pytest.fail("worked")) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: --out={place} ")
    assert run_writing(monkeypatch, tmp_path, folder="out") is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_commands_do_not_write_the_same(monkeypatch, capsys, tmp_path):
    place = tmp_path / "new" / "result.json"
    ended = []
    run_writing(monkeypatch, place, lambda _: ended.append(run_writing(monkeypatch, place)))
    assert ended == [2] and f"Another command is at work in --out={place}" in capsys.readouterr().err
    assert run_writing(monkeypatch, place) is None and not list(place.parent.iterdir())
