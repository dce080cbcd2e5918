"""The configuration of a run, in a file."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from locoprop_lightning.files import SETTINGS_FILE
from locoprop_lightning.run_folder import settings_folder


class SettingsFile(SaveConfigCallback):
    """Writes the configuration into a folder of the run's own, which that of a logger's logs need not be."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        if self.already_saved:
            return
        folder = settings_folder(trainer)  # asks all processes
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(folder / SETTINGS_FILE), skip_none=False, overwrite=True, multifile=False)
        self.already_saved = True
