"""Draws healthy.png, stalled.png and spikes.png of docs/inspecting.md from short fits on Fashion-MNIST.

python scripts/inner_pictures.py docs/pictures
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from locoprop_lightning.callbacks.local_loss_monitor import heat_map

CONFIGS = Path(__file__).parents[1] / "configs" / "fashion_mnist"
SHOWN = ("1", "5", "9", "13")  # of the layers
M_RMS = ("locoprop_m_rms", "--model.solver.iterations=6", "--local_losses.every_n_steps=5", "--trainer.max_steps=41")
ANDERSON = ("locoprop_m_anderson", "--local_losses.every_n_steps=1", "--trainer.max_steps=1")
FITS = {
    "healthy": M_RMS,
    "stalled": (*M_RMS, '--model.overrides={"7": {"lambda_r": 1000000}}'),
    "with the safeguard": ANDERSON,
    "without": (*ANDERSON, "--model.solver.safeguard=false", "--model.guard=false"),
}


def fit(config: str, *settings: str) -> dict[str, dict[int, np.ndarray]]:
    """Trains, and reads the inner curves by layer and step."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = [f"--trainer.logger.save_dir={folder}", "--trainer.limit_val_batches=0", "--trainer.max_epochs=-1"]
        command = [sys.executable, "-m", "locoprop_lightning", "fit", f"--config={CONFIGS / config}.yaml"]
        subprocess.run([*command, *quiet, *settings], check=True)
        (file,) = Path(folder).rglob("events.out.tfevents.*")
        events = EventAccumulator(str(file.parent)).Reload()
        tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("inner/")]
        return {tag[6:]: {e.step: make_ndarray(e.tensor_proto) for e in events.Tensors(tag)} for tag in tags}


def draw_healthy(curves: dict[str, dict[int, np.ndarray]], path: Path) -> None:
    """A panel a layer, in it a line a sampled step, the later the brighter."""
    figure, panels = plt.subplots(1, len(SHOWN), figsize=(9, 2.6), sharey=True, layout="constrained")
    for panel, name in zip(panels, SHOWN, strict=True):
        for index, (step, losses) in enumerate(curves[name].items()):
            colour = matplotlib.colormaps["viridis"](0.85 * index / (len(curves[name]) - 1))
            panel.plot(losses / losses[0], color=colour, marker=".", label=f"step {step}")
        panel.set(title=f"layer {name}", xlabel="inner iteration")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("local loss / first")
    panels[-1].legend(fontsize="x-small")
    save(figure, path)


def draw_spikes(fits: dict[str, dict[str, dict[int, np.ndarray]]], path: Path) -> None:
    """A panel a fit, in it a line a layer."""
    figure, panels = plt.subplots(1, len(fits), figsize=(9, 3), sharey=True, layout="constrained")
    for panel, (title, curves) in zip(panels, fits.items(), strict=True):
        for index, name in enumerate(SHOWN):
            colour = matplotlib.colormaps["viridis"](0.85 * index / (len(SHOWN) - 1))
            panel.plot(curves[name][0], color=colour, marker=".", label=f"layer {name}")
        panel.set(title=title, xlabel="inner iteration", yscale="log")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("local loss")
    panels[-1].legend(fontsize="x-small")
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    """Writes a picture."""
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Trains and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write to")
    folder = parser.parse_args().folder
    fits = {name: fit(*settings) for name, settings in FITS.items()}
    draw_healthy(fits["healthy"], folder / "healthy.png")
    last = max(fits["stalled"]["7"])
    plt.imsave(folder / "stalled.png", heat_map({name: list(c[last]) for name, c in fits["stalled"].items()}))
    draw_spikes({name: fits[name] for name in ("with the safeguard", "without")}, folder / "spikes.png")
    for name, shown in fits.items():
        for layer in ("1", "7", "13"):
            ends = {step: f"{curve[0]:.3g}..{curve[-1]:.3g}" for step, curve in shown[layer].items()}
            print(name, layer, ends)
    print({f"{name} 1": fits[name]["1"][0].tolist() for name in ("with the safeguard", "without")})


if __name__ == "__main__":
    main()
