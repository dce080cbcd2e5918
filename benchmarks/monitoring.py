"""What looking at local losses costs, as a share of training.

    PYTHONPATH=. python benchmarks/monitoring.py configs/fashion_mnist/{foof_rms,locoprop_s_whitened}.yaml

One fit a configuration, with TensorBoard. Steps 51 to 170 are timed, each to its end; every seventh is logged, so that
logged steps meet every phase of kept factors, and two of these are sampled, with inner curves and image. The extra
time of a logged step is its own less the median of all steps that are not. The share is that of 885 steps with one
logged in 50: 18 logged ones, 6 of them sampled.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import warnings
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from locoprop_lightning.callbacks import LocalLossMonitor
from locoprop_lightning.cli import LocoPropCLI
from locoprop_lightning.results.table import markdown
from tests.support import script

FIRST, LAST, EVERY = 51, 170, 7
STEPS, LOGGED, SAMPLED = 885, 18, 6
curves = script("learning_curves")


def measure(config: Path) -> list[str]:
    """A row of the table."""
    settings = {"trainer.max_epochs": "-1", "trainer.max_steps": str(LAST + 1), "trainer.limit_val_batches": "0"}
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        cli = LocoPropCLI.build(config, settings | {"trainer.log_every_n_steps": "50"} | curves.FORCED)
        trainer = cli.trainer
        trainer.logger = TensorBoardLogger(folder, default_hp_metric=False)
        clock = curves.Recorder()
        kept = [c for c in trainer.callbacks if not isinstance(c, LocalLossMonitor)]
        trainer.callbacks = [*kept, LocalLossMonitor(EVERY), clock]
        trainer.fit(cli.model, cli.datamodule)
    took = {step: 1000 * (clock.ends[step] - clock.ends[step - 1]) for step in range(FIRST, LAST + 1)}
    plain = statistics.median(ms for step, ms in took.items() if step % EVERY)
    logged = {step: ms - plain for step, ms in took.items() if step % EVERY == 0}
    sampled = [ms for step, ms in logged.items() if (step // EVERY).bit_count() == 1]
    rest = [ms for step, ms in logged.items() if (step // EVERY).bit_count() > 1]
    extra, extra_sampled = statistics.median(rest), statistics.median(sampled)
    share = (LOGGED * extra + SAMPLED * (extra_sampled - extra)) / (STEPS * plain)
    return [config.stem, f"{plain:.1f}", f"{extra:.1f}", f"{extra_sampled:.1f}", f"{100 * share:.2f}%"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = [["method", "ms a step", "more when logged", "more when sampled", "share"]]
    print(markdown([*rows, *(measure(config) for config in options.configs)]))


if __name__ == "__main__":
    main()
