"""What is a matrix of low rank, kept as the product of two?

M = A B with a small inner dimension, as W_Q W_Kᵀ and W_V W_O are: products, norms, singular values
and eigenvalues are computed from the factors, never from M. Leading axes (layer, head) broadcast.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from casestudy.errors import CasestudyError


class FactoredMatrix:
    """The product of A (…, ldim, mdim) and B (…, mdim, rdim).

    Attributes:
        A, B: the factors, broadcast to common leading axes.
        shape: of the product.
        ldim, mdim, rdim: rows, inner dimension, columns.
    """

    def __init__(self, A: Tensor, B: Tensor) -> None:
        if A.shape[-1] != B.shape[-2]:
            raise CasestudyError(
                f"factors of shapes {tuple(A.shape)} and {tuple(B.shape)}",
                allowed="as many columns in A as rows in B",
            )
        leading = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        self.A = A.expand(*leading, *A.shape[-2:])
        self.B = B.expand(*leading, *B.shape[-2:])
        self.ldim, self.mdim, self.rdim = A.shape[-2], A.shape[-1], B.shape[-1]
        self.shape = torch.Size([*leading, self.ldim, self.rdim])
        self.has_leading_dims = len(leading) > 0

    @property
    def ndim(self) -> int:
        """How many axes the product has."""
        return len(self.shape)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The factors."""
        return self.A, self.B

    @property
    def AB(self) -> Tensor:
        """The product itself."""
        return self.A @ self.B

    @property
    def BA(self) -> Tensor:
        """The factors multiplied the other way round: small, with the same eigenvalues."""
        return self.B @ self.A

    @property
    def T(self) -> FactoredMatrix:
        """The transpose."""
        return FactoredMatrix(self.B.transpose(-2, -1), self.A.transpose(-2, -1))

    def __matmul__(self, other: Tensor | FactoredMatrix) -> Any:
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        if other.ndim == 1:
            return (self.A @ (self.B @ other[:, None]))[..., 0]
        # keep the smaller of the two inner dimensions
        if self.rdim > self.mdim:
            return FactoredMatrix(self.A, self.B @ other)
        return FactoredMatrix(self.AB, other)

    def __rmatmul__(self, other: Tensor) -> Any:
        if other.ndim == 1:
            return ((other[None] @ self.A) @ self.B)[..., 0, :]
        if self.ldim > self.mdim:
            return FactoredMatrix(other @ self.A, self.B)
        return FactoredMatrix(other, self.AB)

    def __mul__(self, scalar: float | Tensor) -> FactoredMatrix:
        if isinstance(scalar, Tensor) and scalar.numel() != 1:
            raise CasestudyError(
                f"* by a tensor of shape {tuple(scalar.shape)}", allowed="a number", hint="Use @"
            )
        return FactoredMatrix(self.A * scalar, self.B)

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> FactoredMatrix:
        """Leading axes as of a tensor; an integer row or column keeps its axis, of length one."""
        index = index if isinstance(index, tuple) else (index,)
        rows: Any = slice(None)
        columns: Any = slice(None)
        spare = sum(i is not None for i in index) - (self.ndim - 2)
        if spare > 2:
            raise CasestudyError(f"{len(index)} indices", allowed=f"at most {self.ndim}")
        if spare == 2:
            index, columns = index[:-1], _kept(index[-1])
        if spare >= 1:
            index, rows = index[:-1], _kept(index[-1])
        return FactoredMatrix(
            self.A[index][..., rows, :] if index else self.A[..., rows, :],
            self.B[index][..., :, columns] if index else self.B[..., :, columns],
        )

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        # by way of the small square matrix between the factors' own singular vectors
        U_A, S_A, Vh_A = torch.linalg.svd(self.A, full_matrices=False)
        U_B, S_B, Vh_B = torch.linalg.svd(self.B, full_matrices=False)
        U, S, Vh = torch.linalg.svd(
            S_A[..., :, None] * (Vh_A @ U_B) * S_B[..., None, :], full_matrices=False
        )
        return U_A @ U, S, Vh_B.transpose(-2, -1) @ Vh.transpose(-2, -1)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, S, V with U diag(S) Vᵀ the product; V's columns are the right singular vectors."""
        return self._svd

    @property
    def U(self) -> Tensor:
        """Left singular vectors, as columns."""
        return self._svd[0]

    @property
    def S(self) -> Tensor:
        """Singular values, falling."""
        return self._svd[1]

    @property
    def V(self) -> Tensor:
        """Right singular vectors, as columns."""
        return self._svd[2]

    @property
    def Vh(self) -> Tensor:
        """The same as `V`: TransformerLens has always meant that by it."""
        return self._svd[2]

    @property
    def eigenvalues(self) -> Tensor:
        """The product's nonzero eigenvalues (complex), which are those of B A."""
        if self.ldim != self.rdim:
            raise CasestudyError(f"eigenvalues of shape {tuple(self.shape)}", allowed="a square")
        small = self.BA
        found: Tensor = torch.linalg.eigvals(
            small if small.dtype == torch.float64 else small.float()
        )
        return found

    def norm(self) -> Tensor:
        """Frobenius norm."""
        return self.S.square().sum(-1).sqrt()

    def collapse_l(self) -> Tensor:
        """diag(S) Vᵀ: the product up to a rotation on the left."""
        return self.S[..., :, None] * self.V.transpose(-2, -1)

    def collapse_r(self) -> Tensor:
        """U diag(S): the product up to a rotation on the right."""
        return self.U * self.S[..., None, :]

    def make_even(self) -> FactoredMatrix:
        """The same product, with the singular values shared evenly by the factors."""
        root = self.S.sqrt()
        return FactoredMatrix(
            self.U * root[..., None, :], root[..., :, None] * self.V.transpose(-2, -1)
        )

    def unsqueeze(self, k: int) -> FactoredMatrix:
        """A leading axis more."""
        return FactoredMatrix(self.A.unsqueeze(k), self.B.unsqueeze(k))

    def get_corner(self, k: int = 3) -> Tensor:
        """The first k rows and columns (and leading entries)."""
        corner = self.A[..., :k, :] @ self.B[..., :, :k]
        return corner[tuple(slice(k) for _ in corner.shape)]

    def __repr__(self) -> str:
        return f"FactoredMatrix: Shape({self.shape}), Hidden Dim({self.mdim})"


def _kept(index: Any) -> Any:
    """An integer as a slice of length one."""
    if not isinstance(index, int):
        return index
    return slice(index, index + 1 if index != -1 else None)


def composition_scores(left: FactoredMatrix, right: FactoredMatrix) -> Tensor:
    """|left right| / (|left| |right|) for every pair along their leading axes.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
    """
    of_left, of_right = left.ndim - 2, right.ndim - 2
    for axis in range(of_left):
        right = right.unsqueeze(axis)
    for axis in range(of_right):
        left = left.unsqueeze(of_left + axis)
    a, b = left.collapse_l(), right.collapse_r()
    both, one, other = (x.square().sum((-2, -1)).sqrt() for x in (a @ b, a, b))
    return both / (one * other)
