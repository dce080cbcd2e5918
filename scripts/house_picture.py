"""Draws docs/pictures/house.svg and house-dark.svg: which part of the package imports which, as the files say.

    python scripts/house_picture.py docs/pictures

A part is a folder or a module of ``locoprop_lightning``. An arrow points at what is imported; those that follow from
others are left out, and so is ``errors``, which everything may import.
"""

import argparse
import ast
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

PACKAGE = Path(__file__).parents[1] / "locoprop_lightning"
# What the picture calls them; parts that are not here serve the command alone, and are left out.
NAMES = {
    "tune": "tune/\nsweeps, studies: the user of Ray",
    "cli": "cli.py\nthe command",
    "callbacks": "callbacks/\nmonitors, timers, summaries",
    "results": "results/\nlogged runs, locoprop-compare",
    "module": "module.py\nLocoPropModule, one step",
    "supervised": "supervised.py\nBackpropModule, evaluation",
    "observer": "observer.py\nSolveObserver",
    "engine": "engine.py\nrecords, problems, solutions",
    "local_problems": "local_problems.py\nfrom a record to a problem",
    "local_layer": "local_layer.py\na layer and what evolves",
    "layer_table": "layer_table.py",
    "settings": "settings.py\nlambdas and names, checked",
    "tasks": "tasks/\nbatches, loss, metrics",
    "checkpoints": "checkpoints.py",
    "optimizers": "optimizers/\nrules, Muon, a schedule",
    "distributed": "distributed/\nseveral processes",
    "solvers": "solvers/\nlocal solvers",
    "oracles": "oracles/\nthe direction D",
    "layers": "layers/\nkinds, tape, discovery",
    "local": "local/\nmathematics of one layer",
}
Node = str | tuple[str, str, int]  # a part, or where an arrow between two passes a row
INKS = {"house": ("#000000", "#eef3f8", "#777777", "white"), "house-dark": ("#e6e6e6", "#26313c", "#9a9a9a", "none")}


def imports(part: str) -> set[str]:
    """Other parts of the picture that a part imports."""
    folder = PACKAGE / part
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]
    found = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = {name.split(".")[1] for name in found if name.startswith(f"{PACKAGE.name}.")}
    return (parts & NAMES.keys()) - {part}


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph without arrows that follow from others."""

    def reach(part: str) -> set[str]:
        return graph[part].union(*(reach(other) for other in graph[part]))

    return {part: used - set().union(*(reach(other) for other in used)) for part, used in graph.items()}


def layout(graph: dict[str, set[str]]) -> tuple[dict[Node, tuple[float, float]], list[list[Node]]]:
    """Places of the parts, below all that import them, and the way of each arrow past the rows between."""
    users = {part: [p for p, used in graph.items() if part in used] for part in graph}

    def depth(part: str) -> int:
        return 1 + max((depth(user) for user in users[part]), default=-1)

    rows: list[list[Node]] = [[] for _ in range(max(map(depth, graph)) + 1)]
    for part in graph:
        rows[depth(part)].append(part)
    ways: list[list[Node]] = []
    for part, used in graph.items():
        for other in sorted(used):
            between = [(part, other, row) for row in range(depth(part) + 1, depth(other))]
            for point in between:
                rows[point[2]].append(point)
            ways.append([part, *between, other])
    near: dict[Node, list[Node]] = {node: [] for row in rows for node in row}
    for way in ways:
        for one, next_one in pairwise(way):
            near[one].append(next_one)
            near[next_one].append(one)
    place = {node: (i + 0.5) / len(row) for row in rows for i, node in enumerate(row)}
    for _ in range(40):
        for row in rows:  # each towards the middle of what it is joined to, as far apart as it is wide
            row.sort(key=lambda node: sum(place[x] for x in near[node]) / max(len(near[node]), 1))
            wide = [1.0 if isinstance(node, str) else 0.35 for node in row]
            for i, node in enumerate(row):
                place[node] = (sum(wide[:i]) + wide[i] / 2) / sum(wide)
    return {node: (place[node], -y) for y, row in enumerate(rows) for node in row}, ways


def arrows() -> str:
    """All arrows in words, which the pictures hold as their description."""
    graph = reduced({part: imports(part) for part in NAMES})
    return "; ".join(f"{part} -> {', '.join(sorted(used))}" for part, used in graph.items() if used)


def draw(name: str, folder: Path) -> None:
    """Draws one of the two pictures."""
    ink, box, line, face = INKS[name]
    where, ways = layout(reduced({part: imports(part) for part in NAMES}))
    bottom = min(y for _, y in where.values())
    with plt.rc_context({"svg.hashsalt": name, "font.size": 8, "text.color": ink}):
        figure, axes = plt.subplots(figsize=(9.5, 0.85 * (1 - bottom)), layout="constrained")
        boxes = {
            part: axes.text(
                *where[part],
                label,
                ha="center",
                va="center",
                bbox={"boxstyle": "round", "fc": box, "ec": line},
                zorder=2,
            ).get_bbox_patch()
            for part, label in NAMES.items()
        }
        for way in ways:
            points = [where[node] for node in way]
            axes.plot(*zip(*points[:-1], strict=True), color=line, lw=0.8, zorder=1)
            ends = {"patchB": boxes[way[-1]], "shrinkA": 0, "shrinkB": 1}
            arrow = {"arrowstyle": "->", "color": line, "lw": 0.8} | ends
            axes.annotate("", points[-1], points[-2], arrowprops=arrow, zorder=1)
        axes.set(xlim=(0, 1), ylim=(bottom - 0.4, 0.4))
        axes.axis("off")
        figure.savefig(folder / f"{name}.svg", facecolor=face, metadata={"Date": None, "Description": arrows()})
        plt.close(figure)


def main() -> None:
    """Draws both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write to")
    folder = parser.parse_args().folder
    for name in INKS:
        draw(name, folder)


if __name__ == "__main__":
    main()
