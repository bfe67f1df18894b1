"""
What the site adds to Markdown (MkDocs hooks). The pages stay readable where Markdown alone is shown.

- ``$...$`` and ``$$...$$`` become MathML, which browsers draw without a script. Where a reader has no font for it, the
  site has one: STIX Two Math, which the package ziamath brings along.
- A link to a file of the repository, such as ``[utility](../sbx_deepspi/losses.py#utility)``, leads to a page that
  shows the file, at the function that it names.
- ``<!-- code -->`` behind such a link shows the function's body as it is in the file; ``<!-- code: A = | B = -->`` only
  the statements in which A or B occurs.

A file, function or statement that is not there ends the build.
"""

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import ziamath
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
FONT = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
LANGUAGES = {".py": "python", ".yml": "yaml", ".md": "markdown", ".toml": "toml"}

LINK = re.compile(
    r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])+)\]\((?P<target>(?:\.\./)+[^)#\s]+)(?:#(?P<name>[\w.]+))?\)"
)
CODE = re.compile(rf"(?m)^{LINK.pattern}(?P<before>[^\n]*?) ?<!-- code(?:: (?P<parts>.+?))? -->$")
# what is not mathematics comes first: fences, and code in a line
MATH = re.compile(
    r"(?ms)^(?P<fence> *(?:```+|~~~+)).*?^(?P=fence) *$|(?P<ticks>`+).+?(?P=ticks)"
    r"|\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^\s$](?:[^$\n]*[^\s$])?)\$"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """
    Add a page for each file of the repository that a page links to, and the font of formulas.

    :param files: of the site
    :param config: of the site
    :return: the same with these pages
    """
    linked = {path for file in files.documentation_pages() for path in linked_files(file)}
    for path in sorted(linked):
        language = LANGUAGES.get(path.suffix, "text")
        name = path.relative_to(ROOT).as_posix()
        fence = "~~~~" if "~~~" not in path.read_text() else "~~~~~~~~"
        content = f"---\nsearch: {{exclude: true}}\nhide: [navigation, toc]\n---\n\n# {name}\n\n"
        content += f'{fence}{{ .{language} linenums="1" }}\n{path.read_text().rstrip()}\n{fence}\n'
        files.append(File.generated(config, source_page(path), content=content))
    files.append(File.generated(config, f"stylesheets/{FONT.name}", abs_src_path=str(FONT)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """
    :param markdown: of a page
    :param page: that it is of
    :param config: of the site
    :param files: of the site
    :return: the Markdown that MkDocs knows
    """
    if page.file.src_uri.startswith("source/"):
        return markdown
    if page.file.src_uri.startswith("api/"):
        page.meta["search"] = {"boost": 0.4}  # pages that explain come first

    def code(match: re.Match[str]) -> str:
        path, name = repository_file(page.file, match), match["name"]
        if not name:
            raise PluginError(f"{page.file.src_uri}: code needs the name of a function: {match[0]}")
        parts = [part.strip() for part in match["parts"].split("|")] if match["parts"] else None
        blocks = statements(path, name, parts)
        lead = match[0][: match[0].index("<!-- code")].strip()
        fenced = "\n\n".join(f'```{{ .python linenums="{line}" }}\n{text}\n```' for line, text in blocks)
        return f'<div class="listing" markdown>\n\n{lead}\n\n{fenced}\n\n</div>'

    def link(match: re.Match[str]) -> str:
        path = repository_file(page.file, match)
        if path is None:
            return match[0]
        target = files.get_file_from_path(source_page(path))
        assert target is not None
        anchor = f"#__codelineno-0-{line_of(path, match['name'])}" if match["name"] else ""
        return f'<a href="{target.url_relative_to(page.file)}{anchor}">{match["text"]}</a>'

    return MATH.sub(mathematics, LINK.sub(link, CODE.sub(code, markdown)))


def mathematics(match: re.Match[str]) -> str:
    """
    :param match: of :data:`MATH`
    :return: MathML; code as it is
    """
    formula = match["display"] or match["inline"]
    if formula is None:
        return match[0]
    drawn = convert(formula.strip(), display="block" if match["display"] else "inline")
    drawn = drawn.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # \sim is a relation
    # in a span, since Markdown takes <math> at the beginning of a line for a block
    return f'<div class="math">{drawn}</div>' if match["display"] else f"<span>{drawn}</span>"


def linked_files(file: File) -> Iterator[Path]:
    """
    :param file: a page
    :return: files of the repository that it links to
    """
    for match in LINK.finditer(file.content_string):
        if (path := repository_file(file, match)) is not None:
            yield path


def repository_file(file: File, match: re.Match[str]) -> Path | None:
    """
    :param file: the page with the link
    :param match: of :data:`LINK`
    :return: the file outside of docs that it names; ``None``: one in docs, or what MkDocs will not find either
    """
    name = posixpath.normpath(posixpath.join("docs", posixpath.dirname(file.src_uri), match["target"]))
    path = ROOT / name
    return path if path.is_file() and not name.startswith("docs/") else None


def source_page(path: Path) -> str:
    """
    :param path: a file of the repository
    :return: the page that shows it
    """
    return f"source/{path.relative_to(ROOT).as_posix()}.md"


def definition(path: Path, name: str) -> ast.FunctionDef | ast.ClassDef:
    """
    :param path: a Python file
    :param name: of a function or class in it, with dots where it is inside of another
    :return: its definition
    """
    node: ast.AST = ast.parse(path.read_text())
    for part in name.split("."):
        found = [
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name == part
        ]
        if not found:
            raise PluginError(f"{path.relative_to(ROOT)} has no {name}")
        node = found[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    return node


def line_of(path: Path, name: str) -> int:
    """
    :param path: a file
    :param name: of a function or class in it
    :return: where it begins
    """
    return definition(path, name).lineno


def statements(path: Path, name: str, parts: list[str] | None) -> list[tuple[int, str]]:
    """
    The body of a function without its docstring, or some of its statements.

    :param path: a Python file
    :param name: of a function in it
    :param parts: what occurs in the statements that are wanted; ``None``: all
    :return: for each run of lines, the first one's number and the text
    """
    lines = path.read_text().splitlines()
    body = definition(path, name).body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    ranges = [(node.lineno, node.end_lineno or node.lineno) for node in body]
    if parts is None:
        ranges = [(ranges[0][0], ranges[-1][1])]
    else:
        texts = ["\n".join(lines[first - 1 : last]) for first, last in ranges]
        for part in parts:
            if not any(part in text for text in texts):
                raise PluginError(f"{path.relative_to(ROOT)}: no statement of {name} has {part!r}")
        ranges = [span for span, text in zip(ranges, texts, strict=True) if any(part in text for part in parts)]
    runs: list[tuple[int, int]] = []
    for first, last in ranges:
        if runs and runs[-1][1] + 1 == first:
            runs[-1] = runs[-1][0], last
        else:
            runs.append((first, last))
    return [(first, dedented(lines[first - 1 : last])) for first, last in runs]


def dedented(lines: list[str]) -> str:
    """
    :param lines: of a block
    :return: the block as if it stood at the margin
    """
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[margin:] for line in lines)
