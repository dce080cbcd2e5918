"""Links what an installed package requires, and nothing else, into its environment.

    python scripts/link_requirements.py PACKAGE[EXTRA] SITE_PACKAGES

PACKAGE is looked for in SITE_PACKAGES, and its requirements, and theirs, in the environment of the Python that runs
this. So a requirement that nobody has written down is missing, as it would be after `pip install`, and nothing is
fetched. Folders that several packages share, as `google`, are linked as a whole.
"""

import sys
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(start: Distribution, extras: set[str]) -> dict[str, Distribution]:
    """What a distribution requires, and what that does, by name.

    Args:
        start: The distribution.
        extras: Extras of it that are asked for.
    """
    asked: dict[str, set[str]] = {}
    found: dict[str, Distribution] = {}
    todo = [(start, extras | {""})]
    while todo:
        one, wanted = todo.pop()
        for requirement in map(Requirement, one.requires or ()):
            if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in wanted):
                continue
            name = canonicalize_name(requirement.name)
            known = asked.setdefault(name, set())
            if new := (requirement.extras | {""}) - known:
                known |= new
                found[name] = distribution(name)
                todo.append((found[name], known))
    return found


def main() -> None:
    """Links them."""
    asked, site = Requirement(sys.argv[1]), Path(sys.argv[2])
    name = canonicalize_name(asked.name)
    (package,) = (one for one in distributions(path=[str(site)]) if canonicalize_name(one.name) == name)
    found = closure(package, asked.extras)
    for one in found.values():
        for top in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(one.locate_file(top))))
    print(f"{len(found)} packages, as {package.name} requires them")


if __name__ == "__main__":
    main()
