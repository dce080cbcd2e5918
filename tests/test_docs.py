"""What the pages of docs/ show runs, and what they name exists."""

import ast
import re
import warnings

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from locoprop_lightning.cli import main
from locoprop_lightning.layers import kind
from tests.support import ROOT

PAGES = {page.name: page.read_text() for page in (ROOT / "docs").glob("*.md")}


def test_examples_of_the_architecture_run(monkeypatch):
    monkeypatch.setattr(kind, "_KINDS", list(kind._KINDS))
    blocks = re.findall(r"```python\n(.*?)```", PAGES["architecture.md"], re.DOTALL)
    assert len(blocks) > 10
    scope = {"__name__": "architecture"}
    for block in blocks:
        exec(block, scope)


SECTIONS = [part for part in PAGES["your_model.md"].split("\n## ") if "```python" in part]


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the packages, about each other
@pytest.mark.parametrize("section", SECTIONS[1:], ids=lambda section: section.partition("\n")[0])
def test_examples_of_your_model_run(section):
    blocks = [block for part in (SECTIONS[0], section) for block in re.findall(r"```python\n(.*?)```", part, re.DOTALL)]
    for package in ("transformers", "timm", "torch_geometric", "peft"):
        if package in section.partition("```python")[2]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what packages say when they are imported
                pytest.importorskip(package, reason=f"{package} is not installed")
    scope = {"__name__": "your_model"}
    for block in blocks:
        exec(block, scope)


class Tokens(LightningDataModule):
    def train_dataloader(self):
        ids = torch.arange(8) + torch.arange(32)[:, None] % 7
        return DataLoader([{"input_ids": i, "labels": i} for i in ids], batch_size=8)


class Images(LightningDataModule):
    def train_dataloader(self):
        labels = torch.arange(16) % 4
        return DataLoader(list(zip(torch.randn(16, 3, 32, 32), labels, strict=True)), batch_size=8)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("index", "package", "data"), [(0, "transformers", "Tokens"), (1, "timm", "Images")])
def test_configurations_of_your_model_run(index, package, data, folder, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(package, reason=f"{package} is not installed")
    block = re.findall(r"```yaml\n(.*?)```", PAGES["your_model.md"], re.DOTALL)[index]
    settings = "trainer: {max_epochs: 1, accelerator: cpu, logger: false, enable_checkpointing: false}\n"
    (folder / "config.yaml").write_text(f"{block}data: tests.test_docs.{data}\n{settings}")
    main(["fit", "--config", "config.yaml", "--trainer.enable_progress_bar", "false"])
    assert "ClosedForm" in capsys.readouterr().out


def defined(path):
    """Names of a file: functions, classes with their members, and constants."""
    names = set()

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")
            for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
                if isinstance(target, ast.Name):
                    names.add(prefix + target.id)

    visit(ast.parse(path.read_text()).body, "")
    return names


@pytest.mark.parametrize("page", ["architecture.md", "mathematics.md"])
def test_code_that_is_named_exists(page):
    cited = re.findall(r"`([\w/]+\.py): ([\w.]+)`", PAGES[page])
    assert len(cited) > 20
    for file, name in cited:
        path = ROOT / "locoprop_lightning" / file
        assert path.is_file() and name in defined(path), f"{file}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    headings = {
        name: {
            re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
            for line in re.findall(r"^#+ .*", text, re.M)
        }
        for name, text in PAGES.items()
    }
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        assert not file or (ROOT / "docs" / file).exists(), target
        if anchor:
            assert anchor in headings[file or page], target
