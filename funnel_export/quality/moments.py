"""Linear regression from streamed sums: rows are added and forgotten, so memory does not depend on their number."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Moments:
    """Sums over rows (x, y), x [inputs] and y [outputs], that determine every least-squares solution; in float64."""

    inputs: int
    outputs: int
    xx: Tensor = field(init=False)
    """[inputs, inputs], sum of x x^T."""
    xy: Tensor = field(init=False)
    """[inputs, outputs], sum of x y^T."""
    yy: float = 0.0
    """Sum of |y|^2."""
    rows: int = 0

    def __post_init__(self) -> None:
        self.xx = torch.zeros(self.inputs, self.inputs, dtype=torch.float64)
        self.xy = torch.zeros(self.inputs, self.outputs, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows, x [rows, inputs] and y [rows, outputs]; products are made in float32."""
        x, y = x.float(), y.float()
        self.xx += (x.T @ x).double()
        self.xy += (x.T @ y).double()
        self.yy += float(y.double().square().sum())
        self.rows += len(x)

    def solve(self, ridge: float, start: Tensor) -> Tensor:
        """The solution [inputs, outputs] of ridge regression that is pulled towards `start` instead of zero.

        It minimises the squared error plus `ridge` times the squared distance from `start`, in which each input counts
        by its own sum of squares.
        """
        scale = self.xx.diagonal().clamp(min=torch.finfo(torch.float32).tiny)
        step: Tensor = torch.linalg.solve(self.xx + ridge * torch.diag(scale), self.xy - self.xx @ start)
        return start + step

    def error(self, solution: Tensor) -> float:
        """The squared error of a solution over these rows, as a share of that of zero."""
        squares = self.yy - 2 * float((solution * self.xy).sum()) + float((solution * (self.xx @ solution)).sum())
        return max(squares, 0.0) / self.yy if self.yy else 0.0
