"""What the pages of docs/ show runs, and what they name exists."""

import ast
import configparser
import importlib
import inspect
import re
import warnings

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

import locoprop_lightning
from locoprop_lightning import LocoPropModule
from locoprop_lightning.cli import main
from locoprop_lightning.layers import kind
from locoprop_lightning.solvers import ClosedForm
from locoprop_lightning.tasks import Classification
from tests.support import ROOT

PAGES = {page.name: page.read_text() for page in (ROOT / "docs").glob("*.md")}


BLOCKS = {name: re.findall(r"```python\n(.*?)```", page, re.DOTALL) for name, page in PAGES.items()}
RUN = sorted(name for name, blocks in BLOCKS.items() if blocks and name != "your_model.md")


def test_pages_have_examples():
    own = {"solver", "oracle", "layer", "task", "network", "activation", "data", "observer", "loop"}
    others = {"inspecting.md", "lightning.md", "predictions.md"}
    assert {"architecture.md", "quick_start.md", *others, *(f"own_{what}.md" for what in own)} <= {*RUN}


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize("page", RUN)
def test_examples_run(page, monkeypatch, folder):
    """The blocks of a page, one after the other."""
    monkeypatch.setattr(kind, "_KINDS", list(kind._KINDS))
    (folder / "configs").symlink_to(ROOT / "configs")  # pages stand in the project's folder
    scope = {"__name__": "page"}
    for block in BLOCKS[page]:
        exec(block, scope)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_kind_of_layer_of_ones_own_is_solved_exactly(monkeypatch, capsys):
    """One step of FOOF on that of the page, against the formula; without the kind the rest optimizer would train it."""
    monkeypatch.setattr(kind, "_KINDS", list(kind._KINDS))
    exec(BLOCKS["own_layer.md"][0], {"__name__": "page"})
    bag = nn.EmbeddingBag(7, 3, mode="sum")
    network = nn.Sequential(bag, nn.Tanh(), nn.Linear(3, 4)).double()
    x, labels, before = torch.randint(7, (30, 5)), torch.arange(30) % 4, bag.weight.detach().clone()
    nn.functional.cross_entropy(network(x), labels).backward()
    y = nn.functional.one_hot(x, 7).sum(1).double()
    c = y.T @ y + 2.0 * torch.eye(7, dtype=y.dtype)
    expected = before - 0.7 * torch.linalg.solve(c, bag.weight.grad)
    module = LocoPropModule(network, Classification(4), ClosedForm(), 0.7, 2.0, objective="squared")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, **quiet)
    trainer.fit(module, DataLoader([(x, labels)], batch_size=None))
    torch.testing.assert_close(bag.weight.detach(), expected, rtol=1e-10, atol=1e-10)
    rows = [line for line in capsys.readouterr().out.splitlines() if "EmbeddingBag" in line]
    assert len(rows) == 1 and "ClosedForm" in rows[0] and "7x3" in rows[0]


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


@pytest.mark.parametrize("index", [0, 1])
def test_configurations_of_own_data_run(index, folder, capsys):
    first, block = re.findall(r"```yaml\n(.*?)```", PAGES["own_data.md"], re.DOTALL)
    if index:  # its data with the model of the first
        scope = {}
        parts = [part for part in BLOCKS["own_data.md"] if "ImageFolder" in part]
        exec(BLOCKS["own_data.md"][0] + "from locoprop_lightning.data import Datasets\n" + parts[0], scope)
        block = first.partition("data:")[0] + block
    settings = "trainer: {max_epochs: 1, accelerator: cpu, logger: false, enable_checkpointing: false}\n"
    (folder / "config.yaml").write_text((block if index else first) + settings)
    main(["fit", "--config", "config.yaml", "--trainer.enable_progress_bar", "false"])
    assert "validation accuracy" in capsys.readouterr().out


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


CITED = {name: found for name, page in PAGES.items() if (found := re.findall(r"`([\w/]+\.py): ([\w.]+)`", page))}


@pytest.mark.parametrize("page", CITED)
def test_code_that_is_named_exists(page):
    assert len(CITED["architecture.md"]) > 20 and len(CITED["mathematics.md"]) > 20
    for file, name in CITED[page]:
        path = ROOT / "locoprop_lightning" / file
        assert path.is_file() and name in defined(path), f"{file}: {name}"


LINKED = {
    str(path.relative_to(ROOT)): path
    for pattern in ("*.md", "docs/*.md", "docs/*/*.md", "results/*/report.md")
    for path in sorted(ROOT.glob(pattern))
}


def test_every_package_has_its_page_of_the_reference():
    pages = {path.stem: path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")}
    for package in locoprop_lightning._PACKAGES:
        assert f".. automodule:: {locoprop_lightning.__name__}.{package}\n   :imported-members:" in pages[package]
    for name in locoprop_lightning.__all__:
        assert sum(f".{name}\n" in page for page in pages.values()) == 1, name


@pytest.mark.parametrize("package", locoprop_lightning._PACKAGES)
def test_signatures_name_the_arguments(package):
    """As the reference and the help of a notebook show them."""
    parts = importlib.import_module(f"{locoprop_lightning.__name__}.{package}")
    for name in parts.__all__:
        if isinstance(part := getattr(parts, name), type):
            assert not {"args", "kwargs"} & {*inspect.signature(part).parameters}, name


SOURCE = re.compile(r"\breview\b|[a-z.],? \(?(19|20)\d\d\b|docs/mathematics.md, section")
FORMULA = re.compile(r"\^-|\^T|\|\||<-|sum_|sqrt|\bgrad\b")


@pytest.mark.parametrize("package", ["solvers", "oracles"])
def test_the_reference_has_the_source_of_every_formula(package):
    """A paper and its year, the review, or where it is derived."""
    parts = importlib.import_module(f"{locoprop_lightning.__name__}.{package}")
    base = parts.LocalSolver if package == "solvers" else parts.Oracle
    made = [one for name in parts.__all__ if isinstance(one := getattr(parts, name), type) and issubclass(one, base)]
    assert len(made) > 4
    for one in made:
        assert inspect.isabstract(one) or SOURCE.search(one.__doc__.replace("`", "")), one.__name__


@pytest.mark.parametrize("package", locoprop_lightning._PACKAGES)
def test_whatever_has_a_formula_has_its_source(package):
    """In its own words, or those of its class."""
    parts = importlib.import_module(f"{locoprop_lightning.__name__}.{package}")
    for name in parts.__all__:
        one = getattr(parts, name)
        own = [vars(one)[key] for key in vars(one) if not key.startswith("_")] if isinstance(one, type) else []
        told = [(getattr(part, "__doc__", None) or "").replace("`", "") for part in (one, *own)]
        assert SOURCE.search(told[0]) or not any(map(FORMULA.search, told)), name


def test_every_paper_that_is_named_is_among_the_sources():
    """By its first author and year."""
    _, sources = PAGES["mathematics.md"].split("\n## Sources\n")
    texts = [path.read_text() for path in (ROOT / "locoprop_lightning").rglob("*.py")] + [*PAGES.values()]
    paper = re.compile(r"([A-Z][a-z]\w+)(?:,? (?:and )?[A-Z][\w' ]+| et\s+al\.)*,?\s+\(?((?:19|20)\d\d)\)")
    named = {found for text in texts for found in paper.findall(text)}
    assert len(named) > 12
    for author, year in named:
        assert any(author in entry and year in entry for entry in sources.split("\n- ")), (author, year)


def test_sphinx_reads_docstrings_as_they_are_meant():
    """It takes "N." for a letter of a list, and what stands before a colon, of a property or a result, for its type."""
    for path in (ROOT / "locoprop_lightning").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                assert not re.search(r"^ +\w+: \w\.$|^Returns:\n +[^:\n]*: ", text, re.M), (path, node.name)
                if any(isinstance(one, ast.Name) and one.id == "property" for one in node.decorator_list):
                    assert ": " not in text.partition("\n")[0], (path, node.name)


def test_the_version_to_cite_is_the_packages():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    version = settings["metadata"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{version}}}" in PAGES["citing.md"]


def headings(path):
    return {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in re.findall(r"^#+ .*", path.read_text(), re.M)
    }


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page):
    """As files; the site's own links are checked where it is built."""
    text = re.sub(r"```.*?```", "", LINKED[page].read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^) ]+)(?: \"[^\"]*\")?\)", text):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            path = LINKED[page].parent / file if file else LINKED[page]
            assert path.exists(), target
            assert not anchor or anchor in headings(path), target
