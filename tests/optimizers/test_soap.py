"""The SOAP that the configurations take, step by step against its authors' algorithm (Vyas et al., 2024)."""

import pytest
import torch
from pytorch_optimizer import SOAP

RATE, BETAS, EPS = 0.01, (0.9, 0.95), 1e-8


class Reference:
    """One matrix [d_out, d_in] or vector [d]: Adam in the eigenbases of the averages of G G^T and G^T G.

    The first gradient makes the bases alone; later ones follow by a step of the power iteration and a QR factorisation.
    """

    def __init__(self, weight, every):
        self.weight, self.every, self.steps = weight.clone(), every, 0
        self.factors, self.bases = [], []
        self.mean, self.square = torch.zeros_like(weight), torch.zeros_like(weight)

    def rotate(self, x, back=False):
        if not self.bases:
            return x
        left, right = self.bases
        return left @ x @ right.mT if back else left.mT @ x @ right

    def gather(self, gradient):
        for factor, now in zip(self.factors, (gradient @ gradient.mT, gradient.mT @ gradient), strict=True):
            factor.lerp_(now, 1 - BETAS[1])

    def step(self, gradient):
        self.steps += 1
        matrix = gradient.ndim == 2
        if self.steps == 1:
            if matrix:
                self.factors = [torch.zeros(d, d, dtype=gradient.dtype) for d in gradient.shape]
                self.gather(gradient)
                self.bases = [torch.linalg.eigh(factor).eigenvectors.flip(1) for factor in self.factors]
            return
        rotated = self.rotate(gradient)
        self.mean.lerp_(rotated, 1 - BETAS[0])
        self.square.lerp_(rotated**2, 1 - BETAS[1])
        taken = self.steps - 1
        rate = RATE * (1 - BETAS[1] ** taken) ** 0.5 / (1 - BETAS[0] ** taken)
        self.weight -= rate * self.rotate(self.mean / (self.square.sqrt() + EPS), back=True)
        if matrix:
            self.follow(gradient)

    def follow(self, gradient):
        self.gather(gradient)
        if taken_by(self) % self.every:
            return
        mean = self.rotate(self.mean, back=True)
        for side, (factor, basis) in enumerate(zip(self.factors, self.bases, strict=True)):
            order = torch.einsum("ij,ik,kj->j", basis, factor, basis).argsort(descending=True)
            self.square = self.square.index_select(side, order)
            self.bases[side] = torch.linalg.qr(factor @ basis[:, order]).Q
        self.mean = self.rotate(mean)


def taken_by(reference):
    return reference.steps - 1


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("shape", [(6, 4), (3, 5), (4,)])
def test_soap_is_its_authors(shape, every):
    start = torch.randn(shape, dtype=torch.float64)
    weight = torch.nn.Parameter(start.clone())
    optimizer = SOAP([weight], lr=RATE, betas=BETAS, weight_decay=0, precondition_frequency=every, eps=EPS)
    reference = Reference(start, every)
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -2, shape[0], dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 1))
    for _ in range(20):
        gradient = scales * torch.randn(shape, generator=generator, dtype=torch.float64) + 0.1
        weight.grad = gradient.clone()
        optimizer.step()
        reference.step(gradient)
        # theirs factorises in float32, whatever the weights are
        torch.testing.assert_close(weight.detach(), reference.weight, rtol=0, atol=1e-6)
    assert (weight.detach() - start).norm() > 0.05
