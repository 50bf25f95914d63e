"""Names, places and `+`: what exists is meant, whatever its name holds."""

from pathlib import Path

import pytest

from aegis_policy.vqa.sources import expanded, offered, parse_source, split_sources

ODD = ("a+b", "a b", "a=b", "a,b", "a:b", "grö\u00dfe", "a+b+c:d", "+", "vqav2:x", "#1", "'q'")


@pytest.mark.parametrize("name", ODD)
def test_a_folder_of_any_name_is_one_source(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for place in (str(tmp_path / name), f"{tmp_path / name}/", f"./{name}"):
        for source in (place, f"vqav2:{place}"):
            assert split_sources(source) == [source]
            assert split_sources(f"tabletop+{source}+{place}") == ["tabletop", source, place]
        assert parse_source(place, offered()) == (None, place)
        assert parse_source(f"okvqa:{place}", offered()) == ("okvqa", place)


def test_what_does_not_exist_is_split_at_every_plus(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert split_sources(f"tabletop+absent+{tmp_path}/b") == ["tabletop", "absent", f"{tmp_path}/b"]
    assert split_sources("tabletop") == ["tabletop"] and split_sources("x" * 5000) == ["x" * 5000]


def test_a_name_stays_a_name_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tabletop").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_source("tabletop", offered()) == ("tabletop", "")
    assert parse_source("./tabletop", offered()) == (None, "./tabletop")


def test_the_home_folder_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a+b").mkdir()
    assert split_sources("vqav2:~/a+b+tabletop") == ["vqav2:~/a+b", "tabletop"]
    assert parse_source("vqav2:~/a+b", offered()) == ("vqav2", f"{tmp_path}/a+b")
    assert expanded("~nobody-here/x") == "~nobody-here/x"
    (tmp_path / "~").mkdir()
    assert expanded("~") == "~"
