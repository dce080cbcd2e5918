"""The configuration of a run, in a file."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from locoprop_lightning.run_folder import SETTINGS_FILE, settings_folder


class SettingsFile(SaveConfigCallback):
    """Writes the configuration into a folder of the run's own, which that of a logger's logs need not be."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        folder = settings_folder(trainer)
        if trainer.is_global_zero and not self.already_saved:
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(folder / SETTINGS_FILE), skip_none=False, overwrite=True, multifile=False)
        self.already_saved = True
