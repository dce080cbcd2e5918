"""Draws docs/pictures/idea.svg and idea-dark.svg: the local problem of one unit, computed by this package.

    python scripts/idea_picture.py docs/pictures

Left: one sample. The matching loss of a pre-activation z is the area between f and the target, taken from the
pre-activation that would give the target. Middle: the local loss of a unit with one weight, over the displacement of
that weight, and what it is made of. Right: a unit with two weights, and the iterates of solvers.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from locoprop_lightning.local import LocalProblem, resolve_transfer
from locoprop_lightning.solvers import FixedPointIteration, GradientDescent, Majorization

# Okabe and Ito's colours, lighter ones on dark pages; dashes and labels tell curves apart without them.
INKS = {
    "idea": {"ink": "#000000", "faint": "#8a8a8a", "blue": "#0072B2", "orange": "#D55E00", "green": "#007A59"},
    "idea-dark": {"ink": "#e6e6e6", "faint": "#8f8f8f", "blue": "#56B4E9", "orange": "#F0843C", "green": "#2FCB9E"},
}
LAMBDA_A, LAMBDA_R = 12.0, 1.0
TANH = resolve_transfer("tanh")


def unit(inputs: int, lambda_r: float = LAMBDA_R) -> LocalProblem:
    """A tanh unit on 12 samples of one or two inputs, with a random gradient that asks for smaller outputs."""
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    y = y @ torch.tensor([[1.2, 0.8], [0.0, 0.6]], dtype=torch.float64)
    noise = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    g = (y @ torch.tensor([[1.3], [-0.9]], dtype=torch.float64) + 0.2 * noise) / 12
    w = torch.tensor([[0.9, -0.4]], dtype=torch.float64)
    y, w = y[:, :inputs], w[:, :inputs]
    return LocalProblem(y, y @ w.t(), g, w, None, TANH, LAMBDA_A, lambda_r)


def draw_sample(axes: Any, colour: dict[str, str]) -> None:
    """f, a target, and the matching loss of the present pre-activation as an area."""
    z = torch.linspace(-1.6, 1.9, 200, dtype=torch.float64)
    start, target = torch.tensor(1.2, dtype=torch.float64), torch.tensor(-0.35, dtype=torch.float64)
    wanted = torch.atanh(target)
    axes.plot(z, TANH.f(z), color=colour["ink"])
    axes.axhline(target, color=colour["orange"], ls="--")
    inside = (z >= wanted) & (z <= start)
    axes.fill_between(z[inside], TANH.f(z)[inside], target, color=colour["blue"], alpha=0.3, lw=0)
    axes.plot(start, TANH.f(start), "o", color=colour["ink"])
    axes.annotate(
        "", (start, target), (start, TANH.f(start)), arrowprops={"arrowstyle": "->", "color": colour["orange"]}
    )
    axes.text(start + 0.07, 0.2, r"$-\lambda_a D$", color=colour["orange"])
    axes.text(start - 0.08, TANH.f(start) + 0.05, "now, $f(A)$", color=colour["ink"], ha="right")
    axes.text(-1.55, target + 0.04, "target $T$", color=colour["orange"])
    axes.text(0.66, -0.16, "matching\nloss", color=colour["blue"], ha="center")
    axes.text(-1.5, float(TANH.f(z[:1])) + 0.08, "$f$", color=colour["ink"], ha="right")
    axes.set(xlabel="pre-activation $z$", title="One sample has a target", ylim=(-1.05, 1.05))


def draw_weight(axes: Any, colour: dict[str, str]) -> None:
    """The local loss over the displacement of one weight, with its two parts, and the squared one."""
    problem = unit(1, 8.0)
    v = np.linspace(-2.1, 0.45, 120)
    points = [torch.tensor([[x]], dtype=torch.float64) for x in v]
    matching = np.array([problem.value(p, proximal=False).item() for p in points])
    zero = matching.min()  # a constant of the matching loss is free
    whole = np.array([problem.value(p).item() for p in points])
    axes.plot(v, whole - zero, color=colour["ink"], label="local loss $J$")
    axes.plot(v, matching - zero, color=colour["blue"], ls="--", label="matching loss")
    axes.plot(v, whole - matching, color=colour["green"], ls=":", lw=2, label=r"$\frac{\lambda_r}{2}\,\|W - W_0\|^2$")
    best = Majorization(200).solve(problem).displacement
    axes.plot(0, -zero, "o", color=colour["ink"])
    axes.plot(best.item(), problem.value(best).item() - zero, "*", ms=12, color=colour["ink"])
    axes.text(0.06, -zero - 0.8, "$W_0$", color=colour["ink"])
    axes.text(best.item(), problem.value(best).item() - zero + 1.2, "$W^+$", color=colour["ink"], ha="center")
    axes.legend(frameon=False, labelcolor="linecolor", loc="upper center")
    axes.set(xlabel="displacement of the weight", title="All samples make a convex problem", ylim=(-0.3, 16))


def draw_weights(axes: Any, colour: dict[str, str]) -> None:
    """The local loss over the displacements of two weights, and the paths of solvers."""
    problem = unit(2)
    u, v = np.meshgrid(np.linspace(-1.75, 0.25, 61), np.linspace(-0.75, 1.25, 61))
    points = torch.tensor(np.stack([u.ravel(), v.ravel()], 1))
    values = np.array([problem.value(p[None]).item() for p in points]).reshape(u.shape)
    levels = np.quantile(values, np.linspace(0.01, 0.9, 9))
    axes.contour(u, v, values, levels=levels, colors=colour["faint"], linewidths=0.7, linestyles="-")
    best = Majorization(200).solve(problem).displacement[0]
    rate = 0.9 / (torch.linalg.eigvalsh(problem.gram())[-1].item() + LAMBDA_R)
    step = FixedPointIteration(1).solve(unit(2, 1 / rate)).displacement[0]  # the gradient's, as back-propagation goes
    slow = path(lambda t: GradientDescent(t, rate=rate, proximal=True), problem, 10)
    quick = path(lambda t: Majorization(t), problem, 4)
    axes.plot(*slow.T, "s--", color=colour["orange"], ms=3.5, lw=1.2)
    axes.plot(*quick.T, "o-", color=colour["blue"], ms=4)
    axes.annotate(
        "one step:\nback-propagation",
        step,
        (-0.72, -0.68),
        color=colour["orange"],
        ha="center",
        arrowprops={"arrowstyle": "-", "color": colour["orange"], "lw": 0.7},
    )
    axes.text(slow[-1, 0] - 0.05, slow[-1, 1] - 0.16, "gradient steps", color=colour["orange"], ha="right")
    axes.text(-0.42, 0.32, "majorisation", color=colour["blue"], ha="center")
    axes.plot(*best, "*", ms=12, color=colour["ink"])
    axes.plot(0, 0, "o", color=colour["ink"])
    axes.text(best[0] - 0.07, best[1] + 0.1, "$W^+$", color=colour["ink"], ha="right")
    axes.text(0.05, 0.06, "$W_0$", color=colour["ink"])
    axes.set(xlabel="displacement of weight 1", title="A solver walks to its minimum")
    axes.set_ylabel("displacement of weight 2", labelpad=0)


def path(make: Any, problem: LocalProblem, steps: int) -> np.ndarray:
    """The points after 0, 1, ..., T steps [T + 1, 2]."""
    return np.stack([np.zeros(2)] + [make(t).solve(problem).displacement[0].numpy() for t in range(1, steps + 1)])


def main() -> None:
    """Draws both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write to")
    folder = parser.parse_args().folder
    for name, colour in INKS.items():
        lines = dict.fromkeys(
            ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), colour["ink"]
        )
        style = {
            "svg.hashsalt": name,
            "axes.facecolor": "none",
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
        with plt.rc_context(style | lines):
            figure, panels = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
            for axes, draw in zip(panels, (draw_sample, draw_weight, draw_weights), strict=True):
                draw(axes, colour)
                axes.set(xticks=[], yticks=[])
            face = "white" if name == "idea" else "none"
            figure.savefig(folder / f"{name}.svg", facecolor=face, metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
