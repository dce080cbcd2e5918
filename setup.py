"""Puts configurations, search spaces and studies into the built package; all else of the packaging is in setup.cfg."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

PACKAGE = "locoprop_lightning"
FOLDERS = ("configs", "tune/spaces", "tune/studies")


class BuildWithFiles(build_py):
    """Copies them below the package, where `shipped.py` looks; an editable install reads the checkout."""

    def run(self) -> None:  # noqa: D102
        super().run()
        if not self.editable_mode:
            for source, target in self._files().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_source_files(self) -> list[str]:  # noqa: D102
        return super().get_source_files() + list(self._files())

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:  # noqa: D102
        return super().get_outputs(include_bytecode) + list(self._files().values())

    def _files(self) -> dict[str, str]:
        missing = [folder for folder in FOLDERS if not Path(folder).is_dir()]
        if missing:
            raise SetupError(f"{', '.join(missing)}: not here; build in the whole project, or the package lacks them.")
        paths = sorted(path for folder in FOLDERS for path in Path(folder).rglob("*.yaml"))
        return {str(path): str(Path(self.build_lib, PACKAGE, path)) for path in paths}


setup(cmdclass={"build_py": BuildWithFiles})
