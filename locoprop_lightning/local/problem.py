"""The local problem of one layer: a matching loss to the oracle's target plus a proximal term (Proposition 1)."""

from torch import Tensor

from locoprop_lightning.local.linear_map import LinearMap, sample_rows
from locoprop_lightning.local.transfer import Transfer

Scalar = float | Tensor


class LocalProblem:
    """Minimise J(W) = sum_n D_F(W y_n, a_n) + lambda_r/2 ||W - W0||^2 over W.

    Everything is a function of the displacement V = W - W0 as one matrix [W | b] [d_out, width]; V = 0 is the start of
    the step. In this form a zero direction gives an exactly zero gradient.

    Args:
        rows: Y, inputs of the layer [n, d_in].
        pre_activation: A = Y W0^T + b0 [n, d_out].
        direction: D, the oracle's direction [n, d_out]; the target is T = f(A) - lambda_a D.
        weight: W0 [d_out, d_in].
        bias: b0 [d_out], if the layer has one.
        transfer: f.
        lambda_a: Length of the oracle's step.
        lambda_r: Strength of the proximal term, above 0.
        first_gradient: lambda_a D^T Y [d_out, width], where it is known already.
        name: Name of the layer.
        row_weight: Factor of every row's loss, other than 1 where the rows are a sample.
    """

    def __init__(
        self,
        rows: Tensor,
        pre_activation: Tensor,
        direction: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transfer: Transfer,
        lambda_a: float,
        lambda_r: Scalar,
        first_gradient: Tensor | None = None,
        name: str = "",
        row_weight: float = 1.0,
    ) -> None:
        self.name = name
        self.map = LinearMap(rows, bias is not None)
        self.pre_activation = pre_activation  # A
        self.direction = direction  # D
        self.weight = weight  # W0
        self.bias = bias
        self.transfer = transfer  # f
        self.lambda_a = lambda_a
        self.lambda_r = lambda_r
        self.row_weight = row_weight
        self._target: Tensor | None = None
        self._first_gradient = first_gradient

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.map.n

    @property
    def squared(self) -> bool:
        """Whether f is the identity, LocoProp-S."""
        return self.transfer.name == "identity"

    @property
    def target(self) -> Tensor:
        """T = f(A) - lambda_a D [n, d_out]."""
        if self._target is None:
            self._target = self.transfer.f(self.pre_activation) - self.lambda_a * self.direction
        return self._target

    def zeros(self) -> Tensor:
        """The start of the step, V = 0 [d_out, width]."""
        return self.direction.new_zeros(self.direction.shape[1], self.map.width)

    @property
    def first_gradient(self) -> Tensor:
        """Grad J(W0) = lambda_a D^T Y [d_out, width]."""
        if self._first_gradient is None:
            self._first_gradient = self.map.adjoint(self.direction).mul_(self.lambda_a * self.row_weight)
        return self._first_gradient

    def gradient(self, v: Tensor, proximal: bool = True) -> Tensor:
        """Grad J(W0 + V) = (f(Y W^T) - T)^T Y + lambda_r V [d_out, width].

        Args:
            v: Displacement [d_out, width].
            proximal: Whether the proximal term takes part (the published iteration leaves it out).
        """
        if self.squared:  # f(Y W^T) - T = Y V^T + lambda_a D
            residual = self.map.apply(v).add_(self.direction, alpha=self.lambda_a)
        else:
            residual = self.transfer.f_(self.map.apply(v, start=self.pre_activation)).sub_(self.target)
        gradient = self.map.adjoint(residual)
        if self.row_weight != 1.0:
            gradient *= self.row_weight
        return gradient.add_(v * self.lambda_r) if proximal else gradient

    def value(self, v: Tensor, proximal: bool = True) -> Tensor:
        """J(W0 + V) - J(W0), scalar: defined also where a target is out of the range of f."""
        z = self.map.apply(v)
        loss = self.transfer.divergence(z, self.pre_activation).sum() + self.lambda_a * (self.direction * z).sum()
        loss = loss * self.row_weight
        return loss + self.lambda_r * v.square().sum() / 2 if proximal else loss

    def first_loss(self) -> Tensor:
        """lambda_a^2 ||D||^2 / (2 n), the yardstick of the local-loss curves, per sample."""
        return self.lambda_a**2 * self.direction.square().sum() / (2 * self.n)

    def loss(self, v: Tensor) -> Tensor:
        """``first_loss`` plus the change of J per sample: for S the local loss itself."""
        return self.first_loss() + self.value(v) / self.n

    def sample(self, m: int) -> "LocalProblem":
        """The problem on at most ``m`` rows, weighted so that its value estimates this one's."""
        rows = sample_rows(self.n, m)
        y = self.map.rows[rows]
        return LocalProblem(
            y,
            self.pre_activation[rows],
            self.direction[rows],
            self.weight,
            self.bias,
            self.transfer,
            self.lambda_a,
            self.lambda_r,
            name=self.name,
            row_weight=self.n / y.shape[0],
        )

    def split(self, v: Tensor) -> tuple[Tensor, Tensor | None]:
        """Cuts [W | b] into a weight [d_out, d_in] and a bias [d_out]."""
        d = self.map.rows.shape[1]
        return v[:, :d], v[:, d] if self.map.bias else None

    def __repr__(self) -> str:
        d_out, width = self.direction.shape[1], self.map.width
        return f"LocalProblem({self.name!r}, n={self.n}, {width}->{d_out}, f={self.transfer.name})"
