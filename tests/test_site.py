"""The pages of the documentation that are made from the code, without the site around them."""

import ast
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))

from _pages.api import ROOMS, api_pages  # noqa: E402
from _pages.errors import sentences  # noqa: E402
from _pages.register import register_pages  # noqa: E402
from _pages.text import markdown  # noqa: E402
from _pages.verbs import verb_page  # noqa: E402

from explainode.cli.main import VERBS  # noqa: E402
from explainode.registry.entries import GROUPS, names  # noqa: E402

SCRIPTS = sorted([*(DOCS / "gallery").glob("*.py"), *(DOCS / "tutorials").glob("*.py")])


def test_every_public_name_has_its_heading():
    from importlib import import_module

    pages = api_pages()
    for room in ROOMS:
        heads = set(re.findall(r"^## (\w+)$", pages[f"{room or 'explainode'}.md"], flags=re.M))
        assert heads == set(import_module(f"explainode.{room}" if room else "explainode").__all__)


def test_every_entry_of_the_register_is_listed():
    pages = register_pages()
    for group in GROUPS:
        assert set(re.findall(r"^\| `([^`]+)` \|", pages[f"{group}.md"], flags=re.M)) == set(names(group))


def test_every_verb_shows_its_help():
    assert re.findall(r"^## (\S+)$", verb_page(), flags=re.M) == list(VERBS)


def test_sentences_of_errors_are_read_from_the_code():
    known = sentences()
    assert sum(map(len, known.values())) > 300
    assert any(text.startswith("noise must be 'off', 'path' or 'mean:k'") for text in known["jobs"])
    assert "\0" in "".join(known["registry"])  # where the user's own words stand


def test_docstrings_become_markdown():
    text = markdown(
        "Mean of |x| over *all*.\n\n    a = b\n\nArgs:\n    x: (B,) values,\n        as they are.\n\nExample:\n    >>> 1 + 1\n    2"
    )
    assert (
        text
        == "Mean of \\|x\\| over \\*all\\*.\n\n```text\na = b\n```\n\n- `x`: (B,) values, as they are.\n\n```python\n>>> 1 + 1\n2\n```"
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_use_public_names(script):
    """What a page shows to readers is what they may rely on."""
    from importlib import import_module

    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("explainode")
            and node.module not in ("explainode.registry.entries",)
        ):
            assert {alias.name for alias in node.names} <= set(import_module(node.module).__all__), (
                script.name,
                node.module,
            )
