import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from locoprop_lightning.local import resolve_transfer
from locoprop_lightning.tasks import Classification, LanguageModelling, Reconstruction


def case(name):
    """A task, an output and a target in float64."""
    torch.manual_seed(1)
    if name == "classification":
        return Classification(3), torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    if name == "reconstruction":
        task = Reconstruction()
        return task, torch.randn(5, 6, dtype=torch.float64), task.target((torch.rand(5, 1, 2, 3).double(), None))
    return LanguageModelling(), torch.randn(2, 4, 3, dtype=torch.float64), torch.randint(3, (2, 4))


EVERY = pytest.mark.parametrize("name", ["classification", "reconstruction", "language"])


@EVERY
def test_the_gradient_is_link_less_target_over_terms(name):
    task, output, target = case(name)
    output.requires_grad_()
    (gradient,) = torch.autograd.grad(task.loss(output, target), output)
    predicted = resolve_transfer(task.link).f(output.detach())
    dense = target if name == "reconstruction" else F.one_hot(target, 3)
    torch.testing.assert_close(gradient * task.terms(target), predicted - dense)


@EVERY
def test_sampled_labels_have_the_predicted_mean(name):
    task, output, target = case(name)
    generator = torch.Generator().manual_seed(0)
    draws = [task.sample_labels(output, generator) for _ in range(4000)]
    assert draws[0].shape == target.shape
    assert torch.isfinite(task.loss(output, draws[0]))
    dense = draws if name == "reconstruction" else [F.one_hot(draw, 3) for draw in draws]
    mean = torch.stack(dense).double().mean(0)
    torch.testing.assert_close(mean, resolve_transfer(task.link).f(output), rtol=0, atol=0.04)


@EVERY
def test_a_diverged_network_can_be_sampled(name):
    task, output, target = case(name)
    drawn = task.sample_labels(torch.full_like(output, torch.nan), torch.Generator())
    assert drawn.shape == target.shape


@EVERY
def test_metrics(name):
    task, output, target = case(name)
    metrics = task.metrics()
    metrics.update(task.score(output), target)
    (value,) = metrics.compute().values()
    expected = {
        "classification": lambda: (output.argmax(-1) == target).double().mean(),
        "reconstruction": lambda: (output.sigmoid() - target).square().mean(),
        "language": lambda: task.loss(output, target).exp(),
    }[name]()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert task.predict(output).shape == target.shape


def test_reconstruction_is_summed_over_pixels():
    task, output, target = case("reconstruction")
    torch.testing.assert_close(
        task.loss(output, target), F.binary_cross_entropy_with_logits(output, target, reduction="none").sum(1).mean()
    )
