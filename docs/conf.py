"""Settings of the documentation site; ``make docs`` builds it.

The source folder is the project's root, so that every Markdown file is read where it stands, and links between files
are the same on the site and in the repository.
"""

import re
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform

ROOT = Path(__file__).parents[1]
HEADINGS = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "mathematics.md").read_text(), re.MULTILINE)

project = "LocoProp Lightning"
author = "The LocoProp Lightning authors"
copyright = author  # noqa: A001, Sphinx's name
release = version = installed("locoprop-lightning")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["docs/**", "results/*/report.md", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "data", "runs", "**/__pycache__"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Imports and helpers", "Imports and helpers"  # of the cells that are folded
nb_output_stderr = "remove"  # what packages say when they are imported

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = False  # what a method says is said once, in the class that it comes from
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

toc_object_entries_show_parents = "hide"
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_site"]  # leads from the folder's top to the first page
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
pygments_style, pygments_dark_style = "tango", "github-dark"


class DarkPictures(SphinxTransform):
    """Shows ``NAME-dark.svg``, where there is one beside ``NAME.svg``, to readers who chose a dark page."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Adds the second picture after the first."""
        folder = (ROOT / self.env.docname).parent
        for image in list(self.document.findall(nodes.image)):
            dark = image["uri"].removesuffix(".svg") + "-dark.svg"
            if image["uri"].endswith(".svg") and "://" not in dark and (folder / dark).is_file():
                other = image.deepcopy()
                other["uri"] = dark
                image["classes"].append("only-light")
                other["classes"].append("only-dark")
                image.parent.insert(image.parent.index(image) + 1, other)


class Punctuation(SphinxTransform):
    """Keeps a comma and the like on the line of the formula that they follow."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Hands them to the formula."""
        for formula in list(self.document.findall(nodes.math)):
            place = formula.parent.index(formula) + 1
            for text in formula.parent[place : place + 1]:
                if isinstance(text, nodes.Text) and (mark := re.match(r"[.,;:?)]+", text)):
                    formula["mark"] = mark[0]
                    formula.parent[place] = nodes.Text(text[mark.end() :])


class Titles(SphinxPostTransform):
    """Calls a page that is linked by its file's name, as in the repository, by its title, or by that of the section."""

    default_priority = 8  # before the links are resolved

    def run(self, **kwargs: Any) -> None:
        """Leaves the text of such links to Sphinx."""
        for link in self.document.findall(pending_xref):
            if re.fullmatch(r"[\w/]+\.md", link.astext()) and link.get("refdomain") == "doc":
                link["refexplicit"] = False


def _formula(text: str, display: str) -> str:
    """MathML as browsers draw it well: names of functions and relations are operators, and have space around them."""
    made = convert(text, display=display)
    name, bracket = r"<m([io])>([a-z]{2,})</m\1>", r'(?=<mo stretchy="false">&#x00028;)'
    made = re.sub(name + bracket, r'<mo form="prefix" lspace="0.17em" rspace="0">\2</mo>', made)
    made = re.sub(name, r'<mo form="prefix" lspace="0.17em" rspace="0.17em">\2</mo>', made)
    made = made.replace("<mi>&#x02AAF;</mi>", "<mo>&#x02AAF;</mo>")  # a matrix below another
    return made.replace('<mn mathvariant="bold">1</mn>', "<mn>\N{MATHEMATICAL BOLD DIGIT ONE}</mn>")


def _inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(f'<span class="formula">{_formula(node.astext(), "inline")}{node.get("mark", "")}</span>')
    raise nodes.SkipNode


def _block_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_formula(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def _skip(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of named tuples, which their class describes."""
    return True if (getattr(thing, "__doc__", None) or "").startswith("Alias for field number") else None


def _link_sources(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Makes links of what docstrings name of the mathematics: parts of the review, the page's sections, and papers."""

    def to(text: str, wanted: str) -> str:
        (title, *_) = [one for one in HEADINGS if re.search(wanted, one, re.IGNORECASE)]
        anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        return f"`{text} <../mathematics.html#{anchor}>`__"  # of a page of the reference

    def sections(found: re.Match[str]) -> str:
        told = re.sub(r"\d+", lambda n: to(n[0], rf"^{n[0]} "), found[2])
        return f"the mathematics, section{found[1]} {told}"

    for index, line in enumerate(lines):
        line = re.sub(r"\beq\. (\d)", lambda found: to(found[0], rf"equation \({found[1]}\)"), line)
        line = re.sub(r"``docs/mathematics\.md``, section(s?) (\d+(?: and \d+)?)", sections, line)
        line = re.sub(r"Proposition \d|Algorithms \d and \d", lambda found: to(found[0], found[0]), line)
        line = re.sub(r"(?<=review, )section 3\.\d", lambda found: to(found[0], rf"^{found[0]}\b"), line)
        line = re.sub(r"(?<=review, )section [23]\b(?!\.)", lambda found: to(found[0], "^2 "), line)
        lines[index] = re.sub(r"([a-z.],? \(?)((?:19|20)\d\d)\b", lambda one: one[1] + to(one[2], "^Sources"), line)


def _leave_out_helpers(app: Sphinx, name: str, made: Any, options: Any, bases: list[type]) -> None:
    """Leaves out of a class's bases what gives it a repr and the names of its arguments."""
    bases[:] = [base for base in bases if base.__module__ != "locoprop_lightning.reprs"] or [object]


def setup(app: Sphinx) -> None:
    """Formulas as MathML, which browsers draw without a script, pictures for dark pages, and links by title."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    app.add_transform(DarkPictures)
    app.add_transform(Punctuation)
    app.add_post_transform(Titles)
    app.connect("autodoc-process-bases", _leave_out_helpers)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _link_sources)
