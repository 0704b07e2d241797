"""What tasks are made of: prose and functions of the installed Python packages, and own texts.

Files are listed once and read when one is drawn, so memory holds their names. The same packages and
the same random numbers give the same pieces.
"""

import ast
import re
import sysconfig
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from fastmtp_sglang.errors import FastMTPError

# Words of a passage, and lines of a function: what a small model can answer within its context.
PASSAGE_WORDS = (50, 260)
FUNCTION_LINES = (4, 36)
_PROSE = {".md", ".rst", ".txt"}
# Licences and lists of names are the same in every package, and no text to talk about.
_NO_PROSE = re.compile(
    r"licen[cs]e|notice|copying|authors|entry_points|top_level|requirements|record|sources|vocab",
    re.IGNORECASE,
)
_TRIES = 200
_LARGEST = 400_000
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
_TERM = re.compile(r"`([A-Za-z][\w. -]{2,30})`|(?<=[a-z,] )([A-Z][a-z]{3,}(?: [A-Z][a-z]{3,})?)")

_NO_TERMS = {"None", "True", "False", "Default", "Example", "Optional", "This", "That", "With"}
# Packages hold as many copies of it as files.
_LEGAL = re.compile(r"copyright|licen[cs]ed? |warranty", re.IGNORECASE)


@dataclass(frozen=True)
class Passage:
    """A piece of prose, and where it is from."""

    origin: str
    text: str

    def terms(self) -> list[str]:
        """What it talks about: names and code words, else its longest words; never empty."""
        found = (quoted or name for quoted, name in _TERM.findall(self.text))
        named = [term for term in found if term not in _NO_TERMS]
        words = sorted(set(_WORD.findall(self.text)), key=lambda word: (-len(word), word))
        return list(dict.fromkeys(named)) or words[:5] or [self.origin]


@dataclass(frozen=True)
class Function:
    """A function with its docstring.

    Attributes:
        name: Its name.
        signature: The lines up to the colon.
        purpose: The first paragraph of its docstring.
        body: Its statements without the docstring, indented as a block.
    """

    name: str
    signature: str
    purpose: str
    body: str

    @property
    def source(self) -> str:
        """The function without its docstring."""
        return f"{self.signature}\n{self.body}"


class Material:
    """Draws passages and functions.

    `folders` are searched for sources and texts; by default those of the running Python. `own` are
    texts to draw passages from beside them, such as earlier answers of the target; every second
    passage is one of them. Raises FastMTPError where there is nothing to draw from.
    """

    def __init__(self, folders: Sequence[Path] | None = None, own: Sequence[str] = ()) -> None:
        folders = _installed() if folders is None else folders
        self._modules = _by_package(folders, lambda path: path.suffix == ".py")
        self._texts = _by_package(folders, _is_prose)
        self._own = [text for text in own if len(text.split()) >= PASSAGE_WORDS[0]]
        if not self._modules:
            raise FastMTPError("no Python sources were found to make prompts from")

    def passage(self, random: Random) -> Passage:
        """Draw a piece of prose of `PASSAGE_WORDS` words."""
        if self._own and random.random() < 0.5:
            return Passage("the text", _cut(random.choice(self._own), random))
        for _ in range(_TRIES):
            from_text = bool(self._texts) and random.random() < 0.3
            path = _draw(self._texts if from_text else self._modules, random)
            found = _paragraphs(path) if from_text else [text for text, _ in _docstrings(path)]
            pieces = [piece for piece in found if _is_passage(piece)]
            if pieces:
                return Passage(path.stem.strip("_") or "it", _cut(random.choice(pieces), random))
        raise FastMTPError("the sources hold no prose to make prompts from")

    def function(self, random: Random) -> Function:
        """Draw a documented function of `FUNCTION_LINES` lines."""
        for _ in range(_TRIES):
            functions = _functions(_draw(self._modules, random))
            if functions:
                return random.choice(functions)
        raise FastMTPError("the sources hold no documented functions to make prompts from")


def _installed() -> list[Path]:
    paths = sysconfig.get_paths()
    return [Path(path) for path in dict.fromkeys((paths["stdlib"], paths["purelib"]))]


def _by_package(
    folders: Sequence[Path], wanted: Callable[[Path], bool]
) -> list[tuple[Path, list[Path]]]:
    """Return the wanted files of each package, in an order that is not the file system's."""
    packages: dict[Path, list[Path]] = defaultdict(list)
    for folder in folders:
        for path in folder.rglob("*"):
            inner = path.relative_to(folder).parts
            if wanted(path) and "site-packages" not in inner[:-1]:
                packages[folder / inner[0]].append(path)
    return sorted((package, sorted(files)) for package, files in packages.items())


def _draw(packages: Sequence[tuple[Path, list[Path]]], random: Random) -> Path:
    """Draw a package first: one with ten thousand files is no more varied than one with ten."""
    return random.choice(random.choice(packages)[1])


def _is_prose(path: Path) -> bool:
    # METADATA of a package holds its README.
    return (path.suffix in _PROSE or path.name == "METADATA") and not _NO_PROSE.search(path.name)


def _is_passage(text: str) -> bool:
    return len(text.split()) >= PASSAGE_WORDS[0] and not _LEGAL.search(text)


@lru_cache(maxsize=32)
def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # A broken link or a file that went away: another one is drawn.


@lru_cache(maxsize=32)
def _docstrings(path: Path) -> list[tuple[str, ast.AST]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Old sources with invalid escapes are no news here.
            tree = ast.parse(_read(path))
    except (SyntaxError, ValueError, RecursionError):
        return []  # Templates and test data are not all Python.
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = ((ast.get_docstring(node), node) for node in ast.walk(tree) if isinstance(node, owners))
    return [(text, node) for text, node in found if text]


@lru_cache(maxsize=32)
def _functions(path: Path) -> list[Function]:
    lines = _read(path).splitlines()
    found = []
    for docstring, node in _docstrings(path):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2 or not node.end_lineno:
            continue
        after = node.body[1].lineno
        block = textwrap.dedent("\n".join(lines[after - 1 : node.end_lineno]))
        head = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])).strip()
        size = block.count("\n") + head.count("\n") + 2
        if head.endswith(":") and FUNCTION_LINES[0] <= size <= FUNCTION_LINES[1]:
            purpose = " ".join(docstring.split("\n\n")[0].split())
            body = textwrap.indent(block, "    ")
            found.append(Function(node.name, head, purpose, body))
    return found


@lru_cache(maxsize=32)
def _paragraphs(path: Path) -> list[str]:
    """Join paragraphs of a text to pieces of the size of a passage."""
    text = _read(path)
    if path.name == "METADATA":
        text = text.partition("\n\n")[2]
    return list(_joined(re.split(r"\n\s*\n", text)))


def _joined(paragraphs: Sequence[str]) -> Iterator[str]:
    held: list[str] = []
    for paragraph in paragraphs:
        if len(_WORD.findall(paragraph)) < 0.6 * len(paragraph.split()):
            continue  # Tables, rules, badges.
        held.append(paragraph.strip())
        if sum(len(part.split()) for part in held) >= PASSAGE_WORDS[0]:
            yield "\n\n".join(held)
            held = []


def _cut(text: str, random: Random) -> str:
    """Return whole paragraphs, or lines of a long one, up to a drawn number of words."""
    least, most = PASSAGE_WORDS
    wanted = random.randint(least, most)
    kept: list[str] = []
    words = 0
    for line in text.strip().splitlines():
        length = len(line.split())
        if kept and words >= least and words + length > wanted:
            break
        kept.append(line)
        words += length
    # A paragraph without line breaks may be longer than all of it.
    return "\n".join(kept).strip() if words <= 2 * most else " ".join(text.split()[:wanted])
