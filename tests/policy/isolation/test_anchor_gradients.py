"""The sum of an optimizer step's anchor gradients in one process; two are in `test_two_processes`."""

import pytest
import torch
from torch import nn

from aegis_policy.isolation._anchor_gradients import AnchorGradients


def parameters(*sizes: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(size)) for size in sizes]


def test_two_parameters_that_autograd_gave_one_tensor_are_averaged_apart():
    gradients = AnchorGradients([parameters(3, 3)])
    shared = torch.ones(3)
    gradients.add([shared, shared])
    gradients.add([torch.full((3,), 2.0), torch.full((3,), 5.0)])
    ((first, second),) = gradients.reduce()
    assert first.tolist() == [1.5] * 3
    assert second.tolist() == [3.0] * 3


def test_a_parameter_that_only_a_later_batch_reaches_counts():
    gradients = AnchorGradients([parameters(2, 3), parameters(1)])
    gradients.add([torch.ones(2), None, torch.ones(1)])
    gradients.add([None, torch.ones(3), torch.ones(1)])
    (first, second), (third,) = gradients.reduce()
    assert (first.tolist(), second.tolist(), third.tolist()) == ([0.5] * 2, [0.5] * 3, [1.0])


def test_the_gradients_given_are_not_held_twice():
    gradients = AnchorGradients([parameters(2)])
    given: list[torch.Tensor | None] = [torch.ones(2)]
    place = given[0].data_ptr()
    gradients.add(given)
    assert given == [None]
    assert gradients.accumulated()[0][0].data_ptr() == place, "kept, not copied"


def test_after_clear_there_is_nothing_to_project_against():
    gradients = AnchorGradients([parameters(2)])
    gradients.add([torch.ones(2)])
    gradients.clear()
    assert gradients.accumulated()[0][0].tolist() == [0.0, 0.0]
    with pytest.raises(RuntimeError, match="no anchor gradient"):
        gradients.reduce()
