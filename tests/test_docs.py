"""The documentation: every link leads somewhere, code fits a page, the README stays short."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "models" / "imgrec-mini" / "README.md",
]
MAX_COLUMNS = 100
MAX_README_LINES = 180
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(r"[a-z]+:")  # https:, mailto:

any_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def lines(page: Path, in_code: bool) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines inside, or outside, the code blocks of a page."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif inside == in_code:
            yield number, line


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    names: list[str] = []
    for _, line in lines(page, in_code=False):
        if heading := re.fullmatch(r"#+ (.+)", line):
            name = re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
            repeated = sum(
                re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in names
            )
            names.append(f"{name}-{repeated}" if name in names else name)
    return set(names)


def broken_links(page: Path) -> list[str]:
    broken = []
    for number, line in lines(page, in_code=False):
        for link in LINK.findall(line):
            if ELSEWHERE.match(link):
                continue
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.name}:{number}: {link}")
    return broken


@any_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A & b\n[a](#a--b) [b](#b) [c](none.md) [d](page.md#c)\n```\n[e](none)\n```\n"
    )
    assert broken_links(page) == ["page.md:2: #b", "page.md:2: none.md", "page.md:2: page.md#c"]


@any_page
def test_no_code_block_is_wider_than_a_page(page: Path) -> None:
    wide = [number for number, line in lines(page, in_code=True) if len(line) > MAX_COLUMNS]
    assert wide == []


@any_page
def test_every_code_block_is_closed(page: Path) -> None:
    fences = [line for line in page.read_text().splitlines() if line.startswith("```")]
    assert len(fences) % 2 == 0


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_the_readme_leads_to_every_page_of_the_documentation() -> None:
    links = LINK.findall((ROOT / "README.md").read_text())
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(links)


def test_the_readme_shows_an_output_of_the_tested_session() -> None:
    session = (ROOT / "docs" / "usage.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    assert all(block in session for block in blocks)
