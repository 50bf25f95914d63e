"""Several sets of blocked components on one weight, as tied layers have: all of them are blocked at once.

Holding one set after the other would move a part of the first again, for their directions are not orthogonal to each
other's.

With the blocked components of all blocks as columns of R, what may not move of a matrix M is

    R z        where    R^T R z = R^T M

its orthogonal projection onto their span. Of components that several blocks share z is not unique, and
R z is.

Shape suffixes: D inputs, E outputs of a linear layer, K input and J output directions.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aegis_policy.isolation._blocked_components import BlockedComponents

_SAME = 1e-10
"""Directions whose squared sine is below this share are the same one, known to float32."""
_LEFT = 1e-7
"""How much of the blocked components, relative to the matrix's, may be left."""
_MOST_ITERATIONS = 500


class JoinedComponents(NamedTuple):
    """The union of blocks of which not all take whole input directions.

    R^T R is never formed: in a common basis of all directions it is applied with thin products, and conjugate gradients
    solve for z.

    Attributes:
        basis: orthonormal directions that span those of all parts, outputs None where a part takes all of them.
        parts: the blocks in the coordinates of `basis`, float64.
    """

    basis: BlockedComponents
    parts: tuple[BlockedComponents, ...]

    @property
    def directions(self) -> int:
        """How many input directions have a part that is taken away."""
        return self.basis.directions

    @property
    def input_vectors_DK(self) -> Tensor:
        """Orthonormal input directions that span those of all parts."""
        return self.basis.input_vectors_DK

    def coefficients(self, matrix_ED: Tensor) -> Tensor:
        """What may not move of a matrix, R z, in the coordinates of the basis."""
        inside = self.basis.coefficients(matrix_ED)
        wanted = [part.coefficients(inside.to(part.input_vectors_DK)) for part in self.parts]
        solution = _conjugate_gradients(
            lambda z: [part.coefficients(self._assembled(z)) for part in self.parts], wanted
        )
        return self._assembled(solution).to(inside)

    def along_outputs(self, coefficients: Tensor) -> Tensor:
        """As that of `BlockedComponents`."""
        return self.basis.along_outputs(coefficients)

    def to(self, like: Tensor) -> "JoinedComponents":
        """The same union for matrices on the device and in the dtype of `like`; its solution is found in float64."""
        device = "cpu" if like.device.type == "mps" else like.device  # MPS has no float64
        precise = like.new_empty(0, dtype=torch.float64, device=device)
        return JoinedComponents(self.basis.to(like), tuple(part.to(precise) for part in self.parts))

    def _assembled(self, solution: Sequence[Tensor]) -> Tensor:
        """R z, of a z for each part."""
        return torch.stack(
            [
                part.along_outputs(z) @ part.input_vectors_DK.T
                for part, z in zip(self.parts, solution, strict=True)
            ]
        ).sum(0)


def join(blocks: Sequence[BlockedComponents]) -> BlockedComponents | JoinedComponents:
    """What blocks the components of all `blocks` of one weight; a single one is left as it is."""
    if len(blocks) == 1:
        return blocks[0]
    blocks = [block.to(block.input_vectors_DK.double()) for block in blocks]
    inputs_DK = _span([block.input_vectors_DK for block in blocks])
    if all(block.output_vectors_EJ is None for block in blocks):
        return BlockedComponents(inputs_DK.float())
    sides = [block.output_vectors_EJ for block in blocks if block.output_vectors_EJ is not None]
    outputs_EJ = _span(sides) if len(sides) == len(blocks) else None
    basis = BlockedComponents(inputs_DK, outputs_EJ)
    return JoinedComponents(basis, tuple(_in_coordinates_of(basis, block) for block in blocks))


def _in_coordinates_of(basis: BlockedComponents, block: BlockedComponents) -> BlockedComponents:
    inputs, outputs = basis.input_vectors_DK.T @ block.input_vectors_DK, block.output_vectors_EJ
    if basis.output_vectors_EJ is not None and outputs is not None:
        outputs = basis.output_vectors_EJ.T @ outputs
    return BlockedComponents(
        _orthonormal(inputs), None if outputs is None else _orthonormal(outputs), block.mask_JK
    )


def _span(sets: Sequence[Tensor]) -> Tensor:
    """Orthonormal columns that span those of all `sets`."""
    left, values, _ = torch.linalg.svd(torch.cat(list(sets), 1), full_matrices=False)
    return left[:, values.square() > _SAME * values[0].square()]


def _orthonormal(columns: Tensor) -> Tensor:
    """The nearest orthonormal columns: those given are known to float32."""
    left, _, right = torch.linalg.svd(columns, full_matrices=False)
    return left @ right


def _conjugate_gradients(
    apply: Callable[[Sequence[Tensor]], list[Tensor]], wanted: list[Tensor]
) -> list[Tensor]:
    """Solve `apply(z) = wanted` for a positive semi-definite operator (Hestenes and Stiefel, 1952)."""
    solution = [torch.zeros_like(each) for each in wanted]
    residual, direction = wanted, wanted
    square = _dot(residual, residual)
    enough = square * _LEFT**2
    for _ in range(_MOST_ITERATIONS):
        if square <= enough:
            break
        image = apply(direction)
        step = square / _dot(direction, image)
        solution = [z + step * d for z, d in zip(solution, direction, strict=True)]
        residual = [r - step * x for r, x in zip(residual, image, strict=True)]
        before, square = square, _dot(residual, residual)
        direction = [r + square / before * d for r, d in zip(residual, direction, strict=True)]
    return solution


def _dot(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(xs, ys, strict=True)]).sum()
