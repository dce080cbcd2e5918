"""What the command shows of itself, in a terminal of 80 columns."""

import re
import sys

import pytest

from locoprop_lightning import networks, oracles, solvers
from locoprop_lightning.cli import LocoPropCLI, main
from locoprop_lightning.errors import UserError
from locoprop_lightning.help import command_page, main_page, page

COMMANDS = ("fit", "validate", "test", "predict")
OTHERS = ("locoprop-compare", "locoprop-tune")


@pytest.fixture(scope="module")
def parsers():
    """The parsers of the commands by name."""
    kept = {}

    class Kept(LocoPropCLI):
        def parse_arguments(self, parser, args):
            kept.update(self._subcommand_parsers)
            raise SystemExit

    with pytest.raises(SystemExit):
        Kept(["fit"])
    return kept


def shown(capsys, *arguments):
    main(arguments)
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    return text


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_has_a_line_a_setting_all_of_which_the_parser_takes(command, parsers, capsys):
    text = shown(capsys, command, "--help")
    assert text == command_page(command) and len(text.splitlines()) <= 70
    rows = re.findall(r"^  --(\S+) [A-Z]+ +(.*)$", text, re.M)
    assert len(rows) > 10 and all(told[0].isupper() and told.endswith(".") for _, told in rows)
    known = parsers[command]._option_string_actions
    for name, _ in rows:
        inside = name.startswith(("model.", "data."))  # of a class that is not chosen yet
        assert inside or f"--{name}" in known, name


def test_the_pages_name_what_there_is_to_choose_from(capsys):
    pages = (shown(capsys, "--help"), shown(capsys, "-h"), shown(capsys, "fit", "-h"))
    assert pages[0] == pages[1] == main_page()
    assert all(re.search(rf"^(  )?{command} ", pages[0], re.M) for command in (*COMMANDS, "configs", *OTHERS))
    for package in (solvers, oracles, networks):
        for name in package.__all__:
            made = getattr(package, name)
            if isinstance(made, type) and name in dir(package) and not getattr(made, "__abstractmethods__", None):
                if issubclass(made, (solvers.LocalSolver, oracles.Oracle)) or package is networks:
                    assert all(re.search(rf"\b{name}\b", page) for page in pages[::2]), name


def test_the_long_list_comes_on_request(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--help", "all"])
    assert stopped.value.code == 0 and "--trainer.detect_anomaly" in capsys.readouterr().out


@pytest.mark.parametrize("form", [["--model.solver.help", "ClosedForm"], ["--model.solver.help=ClosedForm"]])
def test_the_help_of_a_class_has_its_settings_by_the_names_that_are_taken(form, capsys):
    text = shown(capsys, "fit", *form)
    assert "--model.solver.refresh_every int (default: 1)" in text and "--solver." not in text


def test_the_help_of_the_module_names_our_classes_alone(capsys):
    text = shown(capsys, "fit", "--model.help", "LocoPropModule")
    assert "--model.lambda_a float (required)" in text and "Take AndersonAcceleration, ClosedForm" in text
    assert "torch.ao" not in text and len(text.splitlines()) < 100


def test_long_types_are_folded(capsys):
    text = shown(capsys, "fit", "--model.network.help", "MLP")
    assert "tanh | relu" in text and "--model.network.bias bool (default: True)" in text


def test_the_classes_of_a_setting_and_one_that_there_is_not(capsys):
    assert "  ClosedForm: W+ = W0" in shown(capsys, "fit", "--model.solver.help")
    assert "  CSVLogger: Log to local file system" in shown(capsys, "fit", "--trainer.logger.help")
    optimizers = shown(capsys, "fit", "--model.optimizer.help")
    assert "  SplitOptimizer: Trains parameters with 2 dimensions" in optimizers and "  Also ASGD, " in optimizers
    assert max(map(len, optimizers.splitlines())) <= 80
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--model.solver.help", "Closed"])
    assert stopped.value.code == 2
    assert "--model.solver.help Closed: is not known; take one of AndersonAcceleration" in capsys.readouterr().err


def test_the_command_alone_shows_the_page_and_ends_with_2(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["locoprop"])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith(main_page()) and "no command: take one of fit" in said


def test_a_class_of_ones_own_has_a_page(folder, monkeypatch):
    """By its path, as all settings take it."""
    text = '"""Mine."""\nclass Slow:\n    """Walks.\n\n    Args:\n        stride: Length of a step.\n    """\n'
    (folder / "own_package.py").write_text(f"{text}\n    def __init__(self, stride: float = 0.5):\n        pass\n")
    monkeypatch.syspath_prepend(folder)
    told = page(["fit", "--model.solver.help", "own_package.Slow"])
    assert (
        "Slow: Walks." in told and "--model.solver.stride float (default: 0.5)" in told and "Length of a step." in told
    )
    with pytest.raises(UserError, match=r"own_package.Fast: is not known"):
        page(["fit", "--model.solver.help", "own_package.Fast"])
