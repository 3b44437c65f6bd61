"""What mkdocs needs to know of this repository: pages and names nobody listed, and links that leave the site."""

import ast
import pathlib
import re
from typing import Any

from tools.tested_with import filled, noted

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Pages of the site that are files outside docs/, with what their links are relative to.
ELSEWHERE = {"index.md": ROOT / "README.md", "benchmarks.md": ROOT / "benchmarks" / "README.md"}
OTHER_PAGES = "How it works"
# The cell that says so of `**keywords`, in a table of parameters.
ANY_REQUIRED = re.compile(r"(<code>\*\*\w+</code>(?:(?!</tr>).)*)<em>required</em>", re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """Puts pages that mkdocs.yml does not name below the others on how things work, by their own titles."""
    listed = str(config["nav"])
    for path in sorted(pathlib.Path(config["docs_dir"]).glob("*.md")):
        if f"'{path.name}'" not in listed:
            title = path.read_text().partition("\n")[0].removeprefix("# ")
            next(entry for entry in config["nav"] if OTHER_PAGES in entry)[OTHER_PAGES].append({title: path.name})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are files elsewhere."""
    from mkdocs.structure.files import File

    for name, path in ELSEWHERE.items():
        files.append(File.generated(config, name, content=path.read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Makes links relative to the site; what is not on it becomes the path of the file in the repository.

    The versions in the tables are those that the tests last passed with here.
    """
    if page.file.src_uri == "api.md":
        return completed(markdown)
    source = ELSEWHERE.get(page.file.src_uri, pathlib.Path(config["docs_dir"]) / page.file.src_uri)

    def relinked(match: re.Match[str]) -> str:
        picture, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = (source.parent / target).resolve()
        here = next((name for name, known in ELSEWHERE.items() if known == path), None)
        if here is None and path.is_relative_to(config["docs_dir"]):
            here = path.relative_to(config["docs_dir"]).as_posix()
        if here is not None:
            return f"{picture}[{text}]({here}{anchor})"
        if not path.exists():
            return match[0]
        where = f"`{path.relative_to(ROOT).as_posix()}`"
        return where if text in where else f"{text} ({where})"

    return LINK.sub(relinked, filled(markdown, noted()))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Does not call `**keywords` required, as the tables of parameters do."""
    return ANY_REQUIRED.sub(r"\1<em>any or none</em>", html)


def completed(api: str) -> str:
    """The API page with every public name, those in no section of it at the end."""
    names = [name for name in public_names() if not re.search(rf"^::: gradops\.{name}$", api, re.MULTILINE)]
    return "\n\n".join([api, *(["## More"] if names else []), *(f"::: gradops.{name}" for name in names)]) + "\n"


def public_names() -> list[str]:
    """`gradops.__all__`, read from the sources: the optimizers' names are those of the door to them."""
    return [*_all_in(ROOT / "gradops" / "optim" / "__init__.py"), *_all_in(ROOT / "gradops" / "__init__.py")]


def _all_in(path: pathlib.Path) -> list[str]:
    """The public names that a file's `__all__` spells out."""
    for node in ast.parse(path.read_text()).body:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "__all__"
            and isinstance(node.value, ast.List)
        ):
            names = [ast.literal_eval(name) for name in node.value.elts if not isinstance(name, ast.Starred)]
            return [name for name in names if not name.startswith("_")]
    raise ValueError(f"{path} has no __all__")
