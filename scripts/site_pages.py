"""Pages of the site that lie outside docs/, and links to them that are good on a forge as well.

Every page links as its place in the project demands: `../roles/base/README.md`, `inventory/hosts.py`. The README,
CONTRIBUTING.md and those of the roles are pages of the site; any other file that a page links to is shown on one.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[(?P<text>[^\]\[]*)\]\((?![a-z]+:|#|<)(?P<to>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
HIGHLIGHTED = {".py": "python", ".yml": "yaml", ".toml": "toml", ".j2": "jinja", ".sh": "sh", "": "text"}


def elsewhere(root: Path) -> dict[str, str]:
    """Pages of the site by the files of the project that they are."""
    roles = {f"roles/{path.parent.name}/README.md": path for path in sorted(root.glob("roles/*/README.md"))}
    return {
        "README.md": "index.md",
        "CONTRIBUTING.md": "contributing.md",
        **{source: f"roles/{path.parent.name}.md" for source, path in roles.items()},
    }


def targets(text: str, source: str) -> Iterator[tuple[re.Match[str], str]]:
    """The relative links of a page, and what they name, as paths of the project.

    + source: the page's own path in the project
    """
    for link in LINK.finditer(text):
        yield link, posixpath.normpath(posixpath.join(posixpath.dirname(source), link["to"]))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, and the files that any page links to."""
    root = Path(config.docs_dir).parent
    others = elsewhere(root)
    for source, page in others.items():
        files.append(File.generated(config, page, abs_src_path=str(root / source)))
    sources = [*others, *(f"docs/{each.src_uri}" for each in files.documentation_pages() if not each.generated_by)]
    linked = {named for source in sources for _, named in targets((root / source).read_text(), source)}
    for named in sorted(linked):
        if _is_file(root, named, others):
            language = HIGHLIGHTED.get(Path(named).suffix, "text")
            text = f"# {named}\n\n~~~~{language}\n{(root / named).read_text()}\n~~~~\n"
            files.append(File.generated(config, f"files/{named}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to the pages of the site, and be called as those are where they are called by their file."""
    root, own = Path(config.docs_dir).parent, page.file.src_uri
    if own.startswith("files/"):
        return markdown
    others = elsewhere(root)
    source = next((path for path, each in others.items() if each == own), f"docs/{own}")
    if own == "index.md":
        # It is alone in its part of the site.
        page.meta["hide"] = ["navigation"]
    for link, named in reversed(list(targets(markdown, source))):
        there = others.get(named) or (f"files/{named}.md" if _is_file(root, named, others) else named)
        there = posixpath.relpath(there.removeprefix("docs/"), posixpath.dirname(own) or ".")
        text = (
            _title(root / named) if link["text"] in (link["to"], named, posixpath.basename(named)) else link["text"]
        )
        markdown = f"{markdown[: link.start()]}[{text}]({there}{link['anchor'] or ''}){markdown[link.end() :]}"
    return markdown


def _title(path: Path) -> str:
    """What a page calls itself; other files have their names."""
    lines = path.read_text().splitlines() if path.suffix == ".md" and path.is_file() else []
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), path.name)


def _is_file(root: Path, named: str, others: dict[str, str]) -> bool:
    """Whether a file of the project is no page and no part of the site by itself."""
    inside = not named.startswith(("docs/", "../"))
    return inside and named not in others and (root / named).is_file()
