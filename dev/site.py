"""What the site's generator is told beside mkdocs.yml: pages of other folders, notebooks, roles."""

from __future__ import annotations

import ast
import base64
import json
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
    """Add the pages that are kept elsewhere, and one for each notebook."""
    for source, name in ELSEWHERE.items():
        files.append(File.generated(config, name, content=read(source)))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, pictures = notebook(path)
        files.append(File.generated(config, f"{path.stem}.md", content=text))
        for name, picture in pictures.items():
            files.append(File.generated(config, name, content=picture))
    return files


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the pictures in it by their names."""
    parts, pictures = [], {}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else fenced(source, "python"))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{number}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                width = output.get("metadata", {}).get("image/png", {}).get("width", 640)
                parts.append(f'![What this cell draws]({name}){{ width="{width}" }}')
            elif text := "".join(output.get("text", data.get("text/plain", ""))).strip():
                parts.append(fenced(text, "text"))
    where = f"This page is the notebook `notebooks/{path.name}`, as `make notebooks` has run it."
    return "\n\n".join([*parts, where]) + "\n", pictures


def fenced(text: str, language: str) -> str:
    return f"````{language}\n{text}\n````"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to what lies outside of docs/ to its place in the site."""
    up = "../" * page.file.src_uri.count("/")
    if SPEED in markdown:
        section = re.search(r"^## How fast\n(.*?)^## ", read("README.md"), re.DOTALL | re.MULTILINE)
        markdown = markdown.replace(SPEED, section[1].strip() if section else SPEED)
    for source, name in ELSEWHERE.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(source)}\)", f"]({up}{name})", markdown)
    markdown = re.sub(r"\[([^]]+)\]\((?:\.\./)*benchmarks\)", r"`\1`", markdown)
    markdown = re.sub(r"\]\((?:\.\./)*(?:notebooks/)?([\w-]+)\.ipynb\)", r"](\1.md)", markdown)
    return re.sub(r"\]\((?:\.\./)*docs/", "](", markdown)


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
