"""The lock file: every requirement has one version there that it allows, and images have the same torch."""

import ast
import re
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT


def lines(text):
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


LOCKED = [Requirement(line) for line in lines((ROOT / "constraints.txt").read_text())]


def locked(name):
    """The versions of a package, which may be several for several systems."""
    found = [one for one in LOCKED if canonicalize_name(one.name) == canonicalize_name(name)]
    return [re.fullmatch("==(.+)", str(one.specifier))[1] for one in found]


def settings():
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def imported(path):
    """Packages that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_what_the_package_imports_it_requires():
    """An installation without the development tools has all: nothing is there by way of another package alone."""
    options, extras = settings()["options"], settings()["options.extras_require"]
    required = {canonicalize_name(Requirement(line).name) for line in lines(options["install_requires"])}
    optional = {name: {canonicalize_name(Requirement(one).name) for one in lines(extras[name])} for name in extras}
    known = packages_distributions()
    for path in (ROOT / "locoprop_lightning").rglob("*.py"):
        own = required | (optional["tune"] if "tune" in path.parts else {"pandas"})  # asked for by who has it
        for package in {*imported(path)} - sys.stdlib_module_names - {"locoprop_lightning", ""}:
            names = {canonicalize_name(name) for name in known.get(package, [package])}
            assert names & own, f"{path.relative_to(ROOT)} imports {package}"


def test_every_requirement_is_locked():
    wanted = lines(settings()["options"]["install_requires"])
    for extra in settings()["options.extras_require"].values():
        wanted += lines(extra)
    assert len(wanted) > 30
    for one in map(Requirement, wanted):
        versions = locked(one.name)
        assert versions and all(one.specifier.contains(version) for version in versions), one


def test_images_have_the_locked_torch():
    text = (ROOT / "docker" / "Dockerfile").read_text()
    for argument, name in (("TORCH", "torch"), ("TORCHVISION", "torchvision")):
        assert re.findall(rf"^ARG {argument}=(.+)$", text, re.M) == locked(name)
