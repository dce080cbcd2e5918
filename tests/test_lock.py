"""The lock file: every requirement has one version there that it allows, and images have the same torch."""

import re
from configparser import ConfigParser

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


def test_every_requirement_is_locked():
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    wanted = lines(settings["options"]["install_requires"])
    for extra in settings["options.extras_require"].values():
        wanted += lines(extra)
    assert len(wanted) > 30
    for one in map(Requirement, wanted):
        versions = locked(one.name)
        assert versions and all(one.specifier.contains(version) for version in versions), one


def test_images_have_the_locked_torch():
    text = (ROOT / "docker" / "Dockerfile").read_text()
    for argument, name in (("TORCH", "torch"), ("TORCHVISION", "torchvision")):
        assert re.findall(rf"^ARG {argument}=(.+)$", text, re.M) == locked(name)
