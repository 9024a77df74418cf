"""README and docs: links lead somewhere, commands are real, and nothing names a place that users do not have."""

import re
import shlex
from pathlib import Path

import pytest

from explainode.cli.main import VERBS
from explainode.registry import composing

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def commands(page: str) -> list[list[str]]:
    """The command lines of all bash blocks, as words; comments and prompts left out."""
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", page, flags=re.S)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'<img[^>]+src="([^"]+)"', text):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path) if path else page
        if made := re.match(r"(?:\.\./)*_(gallery|tutorials)/(\w+)$", path):  # of the site: made from a script
            place = ROOT / "docs" / made[1] / ("README.rst" if made[2] == "index" else f"{made[2]}.py")
        elif re.match(
            r"(?:\.\./)*_(api|register|reference)/", path
        ):  # made from the code; `make docs` follows these links
            continue
        assert place.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            heads = [
                re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-")
                for h in re.findall(r"^#+ (.+)$", place.read_text(), flags=re.M)
            ]
            assert anchor in heads, f"{page.name} links to {target}; headings are {heads}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.M))
    for words in commands(README):
        if words[0] == "make":
            assert words[1] in targets


def test_readme_names_every_verb():
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    used = {words[1] for words in commands(README + tour) if words[0] == "explainode"}
    assert used >= {"train", "evaluate", "compare", "explain", "list", "doctor"}
    assert used <= set(VERBS)


@pytest.mark.parametrize(
    "words",
    [
        w
        for w in commands(README + (ROOT / "docs" / "tour.md").read_text("utf-8"))
        if w[0] == "explainode" and w[1] in ("train", "evaluate", "benchmark")
    ],
    ids=" ".join,
)
def test_readme_settings_compose(words):
    assert composing.compose(words[1], [word for word in words[2:] if not word.startswith("-")])
