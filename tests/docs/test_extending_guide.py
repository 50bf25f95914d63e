"""The protection of the guide to extensions runs as printed."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.protections import PROTECTIONS

_GUIDE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()


class _Vlm(nn.Linear):
    """As much of a VLM as the protection touches."""

    def encode(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self(inputs["x"])


def test_the_protection_of_the_guide_adds_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", _GUIDE, re.M | re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    monkeypatch.setitem(PROTECTIONS, "shrink", names["Shrink"])
    vlm = _Vlm(2, 3)
    vlm.bias.requires_grad_(False)
    step = names["Shrink"](AegisConfig(protection="shrink")).begin_step(vlm, {"x": torch.ones(1, 2)}, None)
    assert torch.equal(step.prefix, vlm(torch.ones(1, 2)))
    loss, figures = step.penalty()
    loss.backward()
    torch.testing.assert_close(vlm.weight.grad, 0.02 * vlm.weight)
    assert figures == {"weight_norm": pytest.approx(0.01 * vlm.weight.square().sum().item())}
