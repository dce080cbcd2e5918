"""What a sweep or a study asks for, held against the configuration before anything is started."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from locoprop_lightning.errors import UserError, near_names
from locoprop_lightning.refusal import sentence
from locoprop_lightning.tune.space import Space
from locoprop_lightning.tune.trial import build, strategy_settings


def check(config: Path, space: Space, metric: str, fixed: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """Builds the configuration at every corner of the space, before anything is started.

    Args:
        config: The YAML.
        space: The space.
        metric: Name of the metric.
        fixed: Settings that all trials have, by name; one that is searched is where the first of them begins.
        workers: Processes of a trial.

    Returns:
        The settings of the configuration, by dotted name.

    Raises:
        UserError: Names a setting that the configuration has not, with near names, or a value that it refuses, and a
            metric that no fit of it logs.
    """
    for key in {"seed_everything", "trainer.max_epochs", "trainer.max_steps"} & space.dimensions.keys():
        raise UserError(f"space: {key}: is the same for all trials; take --seeds, or --set trainer.max_epochs=E.")
    cli = build(str(config), 0, 1, fixed)
    settings = cli.settings()
    if workers > 1:
        strategy_settings(cli.config.trainer.strategy)
    for values in space.corners():
        try:
            build(str(config), 0, 1, {**fixed, **values})
        except (Exception, SystemExit) as error:
            key = list(values)[-1]
            known = {name.replace(".init_args", ""): None for name in settings}
            hint = near_names(key, known) if key not in known else ""
            reason = _reason(error).partition("; near names are ")[0] if hint else _reason(error)
            raise UserError(f"space: {key}={values[key]!r}: {reason}{hint}") from error
    if metric.startswith("val/") and cli.trainer.check_val_every_n_epoch != 1:
        raise UserError(
            f"trainer.check_val_every_n_epoch={cli.trainer.check_val_every_n_epoch}: {metric} is judged after every "
            "epoch; set 1."
        )
    metrics = ["train/loss", "val/loss", *map(str, cli.model.val_metrics)]
    if metric not in metrics:
        near = near_names(metric, metrics)
        raise UserError(f"--metric {metric}: is not logged after an epoch; take one of {', '.join(metrics)}{near}.")
    return settings


def epochs_of(settings: Mapping[str, Any]) -> int:
    """Epochs of a trial of a sweep.

    Args:
        settings: What `check` gives.

    Raises:
        UserError: Trials are not so many whole epochs.
    """
    epochs, steps = settings["trainer.max_epochs"], settings["trainer.max_steps"]
    if epochs is None or epochs < 1:
        raise UserError("trainer.max_epochs: a sweep counts epochs; set how many a trial has.")
    if steps > 0:
        raise UserError(
            f"trainer.max_steps={steps}: a sweep counts epochs, and judges after the last; set trainer.max_epochs, and "
            "trainer.limit_train_batches for short ones."
        )
    return int(epochs)


def _reason(error: BaseException) -> str:
    return (sentence(error) if isinstance(error, Exception) else None) or str(error)
