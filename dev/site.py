"""What the site's generator is told beside mkdocs.yml: pages of other folders, roles."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"dev/LOG.md": "log.md", "CHANGELOG.md": "changes.md"}
"""Pages that are kept outside of docs/, and their places in the site."""
SPEED = "[The table of what has been measured](../README.md#how-fast)."
"""What stands for README.md's table, which the site shows in its place."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are kept elsewhere."""
    for source, name in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to what lies outside of docs/ to its place in the site."""
    up = "../" * page.file.src_uri.count("/")
    if SPEED in markdown:
        section = re.search(r"^## How fast\n(.*?)^## ", read("README.md"), re.DOTALL | re.MULTILINE)
        markdown = markdown.replace(SPEED, section[1].strip() if section else SPEED)
    for source, name in ELSEWHERE.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(source)}\)", f"]({up}{name})", markdown)
    markdown = re.sub(r"\[([^]]+)\]\((?:\.\./)*benchmarks\)", r"`\1`", markdown)
    return re.sub(r"\]\(docs/", "](", markdown)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


class Roles(griffe.Extension):
    """References in docstrings (``:class:`Verdict```): links to what is documented, else code."""

    public: frozenset[str] = frozenset()

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object as it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":\w+:`~?([\w.]+)`", self.link, obj.docstring.value)

    def link(self, found: re.Match[str]) -> str:
        """A link to a public name, or to a member of one."""
        name = found[1].removeprefix("fttt.")
        first = name.partition(".")[0]
        return f"[`{name}`][fttt.{name}]" if first in self.exported() else f"`{name}`"

    def exported(self) -> frozenset[str]:
        """Names that ``fttt`` exports, read without an import of the package."""
        if not self.public:
            for node in ast.parse(read("src/fttt/__init__.py")).body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                    self.public = frozenset(ast.literal_eval(node.value))
        return self.public
