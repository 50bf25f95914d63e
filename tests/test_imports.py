"""The import contract: which group of modules may import which.

Read from the syntax trees, so that imports inside functions count too. Imports for annotations alone (under
`if TYPE_CHECKING:`) never run: between the groups of one package they are free, between packages they are held to
the same arrows, for a name in an annotation is knowledge of the other package all the same.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_FOLDERS = {"policy": ".", "envs": "envs", "eval": "eval"}
"""Package without its `aegis_` -> the folder that holds it."""

_MAY_IMPORT = {
    "policy": "",
    "policy.support": "",
    "policy.isolation": "",
    "policy.pretrained": "policy.support",
    "policy.vlm": "policy.support policy.pretrained",
    "policy.vqa": "policy.support policy.vlm",
    "policy.data": "policy.support",
    "policy.model": "policy.support policy.vlm",
    "policy.anchors": "policy.support policy.isolation policy.vlm policy.vqa",
    "policy.protections": "policy.support policy.isolation policy.vlm policy.vqa",
    "policy.optimizer_aegis": "policy.support policy.isolation",
    "policy.configuration_aegis": "policy.support policy.data policy.protections policy.optimizer_aegis",
    "policy.processor_aegis": "policy.support policy.data policy.configuration_aegis",
    "policy.checkpoint": "policy.support policy.pretrained policy.isolation policy.vlm policy.anchors "
    "policy.protections",
    "policy.lerobot_vlas": "policy.support policy.isolation policy.vlm policy.data policy.protections "
    "policy.optimizer_aegis policy.checkpoint",
    "policy.modeling_aegis": "policy.support policy.vlm policy.vqa policy.data policy.model policy.protections "
    "policy.optimizer_aegis policy.configuration_aegis policy.checkpoint",
    "envs": "",
    "envs.caption": "",
    "envs.errors": "policy.support",
    "envs.rendering": "policy.support envs.errors",
    "envs.vector": "policy.support envs.errors",
    "envs.recording": "policy.support",
    "envs.recording.sources": "policy.support envs.tabletop envs.metaworld",
    "envs.recording.dataset": "policy.support envs.recording.sources",
    "envs.recording.recorder": "policy.support envs.recording envs.recording.sources envs.recording.dataset "
    "envs.tabletop.source envs.metaworld.source",
    "envs.recording.record": "policy.support envs.recording.sources envs.recording.recorder",
    "envs.tabletop": "envs.caption envs.errors envs.rendering envs.vector envs.recording",
    "envs.tabletop.source": "policy.support envs.tabletop envs.recording.sources",
    "envs.metaworld": "envs.errors envs.rendering envs.vector envs.recording",
    "envs.metaworld.source": "envs.errors envs.metaworld envs.recording.sources",
    "envs.libero": "policy.support envs.vector",
    "eval": "",
    "eval.devices": "policy.support",
    "eval.controllers": "envs.tabletop eval.checkpoints eval.devices",
    "eval.checkpoints": "policy.support policy.vlm policy.checkpoint policy.modeling_aegis policy.lerobot_vlas",
    "eval.statistics": "",
    "eval.questions": "policy.support policy.vlm policy.vqa policy.data envs envs.tabletop",
    "eval.answers": "policy.support policy.vlm policy.vqa eval.statistics eval.questions",
    "eval.results": "policy.support eval.statistics",
    "eval.experiments": "policy.support policy.pretrained policy.vqa policy.checkpoint policy.configuration_aegis "
    "envs.tabletop eval.questions eval.results",
    "eval.pages": "policy.support envs.tabletop eval.statistics eval.questions eval.results",
    "eval.pretraining": "policy.support policy.vlm envs.tabletop eval.questions eval.answers",
    "eval.doctor": "policy.support policy.isolation policy.vlm policy.anchors policy.checkpoint policy.data "
    "policy.configuration_aegis policy.lerobot_vlas envs.libero eval.checkpoints",
    "eval.commands": "policy.support policy.pretrained policy.isolation policy.vlm policy.vqa policy.data "
    "policy.anchors policy.checkpoint policy.lerobot_vlas envs.tabletop eval.devices "
    "eval.checkpoints eval.controllers eval.statistics eval.questions eval.answers eval.results eval.experiments "
    "eval.pages eval.pretraining eval.doctor",
}
"""Group -> the groups it may import. A module belongs to the longest name that begins its own."""

_OUTSIDE_OF_ISOLATION = {"torch", "safetensors", *sys.stdlib_module_names}
_HEAVY = {"torch", "lerobot", "transformers"}
_BESIDE_LEROBOT = {"configuration", "source", "dataset", "recorder"}
"""Modules of `aegis_envs`, by their last names, that run beside LeRobot and never in a simulation worker."""


@dataclass(frozen=True)
class Import:
    """`importer` imports `imported`, both without the prefix `aegis_` where they are ours."""

    importer: str
    imported: str
    place: str
    """`file:line`."""
    annotations_only: bool
    at_import: bool
    """Whether it runs as soon as the importer is imported."""

    @property
    def arrow(self) -> tuple[str, str]:
        """The two groups."""
        return _group(self.importer), _group(self.imported)

    def __str__(self) -> str:
        return f"{self.place}: {self.arrow[0]} -> {self.imported}"

    @property
    def crosses_packages(self) -> bool:
        """Whether the two lie in different packages."""
        return self.importer.split(".")[0] != self.imported.split(".")[0]


@cache
def _modules() -> dict[str, Path]:
    found = {}
    for package, folder in _FOLDERS.items():
        above = _ROOT / folder
        for path in sorted((above / f"aegis_{package}").rglob("*.py")):
            name = ".".join(path.relative_to(above).with_suffix("").parts)
            found[name.removesuffix(".__init__").removeprefix("aegis_")] = path
    return found


@cache
def _imports() -> list[Import]:
    return [
        each for module, path in _modules().items() for each in _imports_of(module, path.read_text(), path)
    ]


def _imports_of(module: str, source: str, path: Path) -> Iterator[Import]:
    tree = ast.parse(source)
    of_annotations, in_functions = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            of_annotations |= {below for statement in node.body for below in ast.walk(statement)}
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            in_functions |= set(ast.walk(node))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for name in dict.fromkeys(_names(node, module, path)):
            annotations_only = node in of_annotations
            yield Import(
                importer=module,
                imported=name,
                place=f"{path.relative_to(_ROOT)}:{node.lineno}",
                annotations_only=annotations_only,
                at_import=not annotations_only and node not in in_functions,
            )


def _names(node: ast.Import | ast.ImportFrom, module: str, path: Path) -> list[str]:
    """The modules that a statement imports; ours without `aegis_`."""
    if isinstance(node, ast.Import):
        return [alias.name.removeprefix("aegis_") for alias in node.names]
    base = (node.module or "").removeprefix("aegis_")
    if node.level:
        above = module.split(".")[: None if path.name == "__init__.py" else -1]
        kept = above[: len(above) - (node.level - 1)]
        base = ".".join([*kept, *([base] if base else [])])
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [name if name in _modules() else base for name in names]


def _group(module: str) -> str:
    """The longest name of the table that begins the module's; its own name where the table has none."""
    parts = module.split(".")
    beginnings = (".".join(parts[:length]) for length in range(len(parts), 1, -1))
    return next((name for name in beginnings if name in _MAY_IMPORT), ".".join(parts[:2]))


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in _FOLDERS


def _is_light(module: str) -> bool:
    return module.split(".")[-1] not in _BESIDE_LEROBOT


def test_every_module_belongs_to_a_group() -> None:
    groups = {_group(module) for module in _modules()}
    assert groups - set(_MAY_IMPORT) == set(), "a new group: give it a line in _MAY_IMPORT"
    assert set(_MAY_IMPORT) - groups == set(), "no module is left in it"


def test_every_import_follows_an_arrow() -> None:
    wrong = []
    for each in _imports():
        group, imported = each.arrow
        if group == imported or not _is_ours(each.imported):
            continue
        if each.annotations_only and not each.crosses_packages:
            continue
        if imported not in _MAY_IMPORT.get(group, "").split():
            wrong.append(str(each))
    assert not wrong, "imports without an arrow in _MAY_IMPORT:\n" + "\n".join(wrong)


def test_every_arrow_is_followed_by_an_import() -> None:
    followed = {each.arrow for each in _imports() if each.crosses_packages or not each.annotations_only}
    arrows = {(group, other) for group, allowed in _MAY_IMPORT.items() for other in allowed.split()}
    assert arrows - followed == set(), "nobody imports along these: take them out of _MAY_IMPORT"


def test_the_arrows_form_no_circle_and_go_one_way_between_the_packages() -> None:
    arrows = {group: allowed.split() for group, allowed in _MAY_IMPORT.items()}
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle
    order = list(_FOLDERS)
    for group, allowed in arrows.items():
        for other in allowed:
            assert order.index(other.split(".")[0]) <= order.index(group.split(".")[0]), f"{group} -> {other}"


def test_isolation_imports_torch_safetensors_and_itself() -> None:
    wrong = [
        str(each)
        for each in _imports()
        if _group(each.importer) == "policy.isolation"
        and _group(each.imported) != "policy.isolation"
        and each.imported.split(".")[0] not in _OUTSIDE_OF_ISOLATION
    ]
    assert not wrong, "\n".join(wrong)


def test_simulators_name_neither_torch_nor_lerobot_outside_what_runs_beside_lerobot() -> None:
    wrong = [
        str(each)
        for each in _imports()
        if each.importer.split(".")[0] == "envs"
        and _is_light(each.importer)
        and each.imported.split(".")[0] in _HEAVY
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "light",
    sorted(name for name in _modules() if name.split(".")[0] == "envs" and _is_light(name)),
)
def test_a_module_of_a_simulation_worker_loads_nothing_heavy_through_others(light: str) -> None:
    ways = {light: [light]}
    reached = [light]
    for module in reached:
        for each in _at_import(module):
            if each.imported.split(".")[0] in _HEAVY:
                pytest.fail(" -> ".join([*ways[module], f"{each.imported} ({each.place})"]))
            for name in _with_parents(each.imported):
                if name in _modules() and name not in ways:
                    ways[name] = [*ways[module], name]
                    reached.append(name)


def _at_import(module: str) -> list[Import]:
    return [each for each in _imports() if each.importer == module and each.at_import]


def _with_parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


@pytest.mark.parametrize(
    ("module", "statement", "arrow"),
    [
        ("policy.vlm.loading", "from aegis_policy.protections import PROTECTIONS", "policy.protections"),
        ("policy.vlm.loading", "def late():\n    import aegis_envs.vector", "envs.vector"),
        ("policy.vlm.loading", "from ..data import checks", "policy.data"),
        ("envs.vector", "from aegis_eval import devices", "eval.devices"),
    ],
)
def test_an_import_is_found_however_it_is_written(module: str, statement: str, arrow: str) -> None:
    (found,) = _imports_of(module, statement, _modules()[module])
    assert found.arrow == (_group(module), arrow)
