"""The commands that the pages for users show, and who runs each of them.

Nothing here is a list of commands: they are read from the pages. Who runs one follows from its
first words (`Runner`), and whoever that is takes its commands from here and runs each line as it
is written. What nobody can run says so on the page, in the paragraph before the block, the
paragraph around the words, or in a comment behind the command: `Not run by a test: needs …`. A page
may say it once of one program: `No … command of this page is run by a test: it needs …`.

From the standard library alone, since the drill has nothing else.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAMS = (
    *("docker", "make", "kubectl", "helm", "python", "python3", "pip", "git", "bash", "sh"),
    *(
        "torchrun",
        "srun",
        "sbatch",
        "aws",
        "curl",
        "tensorboard",
        "nvidia-smi",
        "cp",
        "cd",
        "export",
    ),
)
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=(\"[^\"]*\"|'[^']*'|\S*)\s*")
_OF_A_PAGE = re.compile(
    r"no `(?P<program>\w+)` command of this page is run by a test: it (?P<why>needs [^*.]+)",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"\s+#\s(?P<text>.*)$")
_NOT_RUN = re.compile(r"not run by a test: (?P<why>needs [^*.]+)", re.IGNORECASE)
_PARTS = re.compile(r"&&|\|\|?|;|[(){}]|\d?>>?[^;|&]*")
_INLINE = re.compile(r"(?<!`)`(?P<code>[^`\n]+(?:\n[^`\n]+)?)`(?!`)")


class Runner(Enum):
    """Who runs a command of a page, as it is written."""

    CI = "a line of .ci/run"
    DRILL = "tests/drills/drill.py, in a container engine"
    TEST = "tests/test_page_commands.py, on a small run"


@dataclass(frozen=True)
class Command:
    """One line that a reader may type. `needs` is what the page says it needs and was not there."""

    page: str
    line: int
    text: str
    needs: str
    inline: bool

    @property
    def words(self) -> str:
        """Without the variables that are set for it, and whatever Python it is."""
        return without_variables(self.text).replace(".venv/bin/python ", "python ")

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Block:
    """Code that stands by itself, fenced or indented; `before` is the paragraph above it."""

    line: int
    language: str
    lines: list[str]
    before: str


def without_variables(text: str) -> str:
    while found := _ASSIGNMENT.match(text):
        text = text[found.end() :]
    return text


def user_pages(root: Path = ROOT) -> dict[str, str]:
    """README and everything below docs/, by path. CONTRIBUTING.md is for those with a checkout."""
    paths = [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]
    return {str(path.relative_to(root)): path.read_text("utf-8") for path in paths}


def blocks(text: str) -> Iterator[Block]:
    """Fenced and indented blocks, in their order."""
    paragraph: list[str] = []
    inside: list[str] | None = None
    fence, language, began, after_blank = "", "", 0, True
    for number, line in enumerate([*text.splitlines(), ""], 1):
        stripped = line.strip()
        if inside is not None and fence:
            if stripped == fence:
                yield Block(began, language, inside, "\n".join(paragraph))
                inside, fence, paragraph = None, "", []
            else:
                inside.append(line)
            continue
        indented = line.startswith("    ") and (after_blank or inside is not None)
        if inside is not None and not indented and stripped:
            yield Block(began, "", inside, "\n".join(paragraph))
            inside, paragraph = None, []
        if found := re.fullmatch(r"(```+|~~~+)(\w*).*", stripped):
            inside, fence, language, began = [], found[1], found[2], number + 1
        elif indented:
            if inside is None:
                inside, began = [], number
            inside.append(line)
        elif inside is not None:
            inside.append("")
        elif stripped:
            paragraph = [*([] if after_blank else paragraph), stripped]
        after_blank = not stripped
    if inside is not None:
        yield Block(began, "", inside, "\n".join(paragraph))


def commands(page: str, text: str) -> list[Command]:
    """Every command of a page: those of its blocks, then those inside a paragraph.

    A word such as `docker kill` inside a paragraph counts if it says what to do it to.
    """
    found = [command for block in blocks(text) for command in _of_block(page, block)]
    found += _inside_paragraphs(page, text)
    for mark in _OF_A_PAGE.finditer(_one_line(text)):
        program = f"{mark['program']} "
        found = [
            replace(command, needs=mark["why"]) if command.words.startswith(program) else command
            for command in found
        ]
    return found


def _of_block(page: str, block: Block) -> Iterator[Command]:
    above = _NOT_RUN.search(_one_line(block.before))
    number = block.line
    for lines in _joined(block.lines):
        line = " ".join(part.strip().removesuffix("\\").rstrip() for part in lines)
        comment = _COMMENT.search(line)
        text = line[: comment.start()] if comment else line
        own = _NOT_RUN.search(comment["text"]) if comment else None
        if _starts_a_program(text):
            why = own or above
            yield Command(page, number, text.strip(), why["why"] if why else "", inline=False)
        number += len(lines)


def _joined(lines: list[str]) -> Iterator[list[str]]:
    """Lines, those that end with a backslash with the ones that follow."""
    whole: list[str] = []
    for line in lines:
        whole.append(line)
        if not line.endswith("\\"):
            yield whole
            whole = []
    if whole:
        yield whole


def _inside_paragraphs(page: str, text: str) -> Iterator[Command]:
    for block in blocks(text):  # what stands in them is none of a paragraph's
        start = block.line - 1
        lines = text.splitlines()
        lines[start : start + len(block.lines)] = [""] * len(block.lines)
        text = "\n".join(lines)
    number = 1
    for paragraph in re.split(r"(\n\s*\n)", text):
        why = _NOT_RUN.search(_one_line(paragraph))
        for code in _INLINE.finditer(paragraph):
            command = _one_line(code["code"])
            if _starts_a_program(command):
                line = number + paragraph[: code.start()].count("\n")
                yield Command(page, line, command, why["why"] if why else "", inline=True)
        number += paragraph.count("\n")


def _starts_a_program(text: str) -> bool:
    first, _, rest = without_variables(text.strip()).partition(" ")
    return bool(rest) and (first in PROGRAMS or first.startswith((".venv/bin/", "scripts/")))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def python_snippets(text: str) -> list[str]:
    """Blocks of Python that a reader may paste: those that begin with an import."""
    found = []
    for block in blocks(text):
        lines = [line.removeprefix("    ") for line in block.lines]
        if re.match(r"(from \w[\w.]* )?import ", lines[0] if lines else ""):
            found.append("\n".join(lines).strip())
    return found


def ci_commands(root: Path = ROOT) -> set[str]:
    """What .ci/run runs, without the variables and the redirections of each."""
    text = (root / ".ci" / "run").read_text("utf-8")
    lines = (line.strip() for line in text.splitlines())
    parts = (part for line in lines if not line.startswith("#") for part in _PARTS.split(line))
    return {without_variables(part.strip()) for part in parts}


def runner(command: Command, ci: set[str]) -> Runner | None:
    """Who runs this command; None where nobody does."""
    if command.text in ci:
        return Runner.CI
    if command.words.startswith("docker "):
        return Runner.DRILL
    if command.words.startswith("python "):
        return Runner.TEST
    return None


def run_by(who: Runner, pages: Mapping[str, str]) -> list[Command]:
    """What that runner has to run, each text once, in the order of the pages."""
    return _assigned(pages).get(who, [])


def unrun(pages: Mapping[str, str]) -> list[Command]:
    """What nobody runs although its page does not say so."""
    return _assigned(pages).get(None, [])


def _assigned(pages: Mapping[str, str]) -> dict[Runner | None, list[Command]]:
    ci = ci_commands()
    everything = [command for page, text in pages.items() for command in commands(page, text)]
    typed = [command.words for command in everything if not command.inline]
    assigned: dict[Runner | None, dict[str, Command]] = {}
    for command in everything:
        if command.needs or (command.inline and _begins_one_of(command.words, typed)):
            continue
        assigned.setdefault(runner(command, ci), {}).setdefault(command.text, command)
    return {who: list(mine.values()) for who, mine in assigned.items()}


def _begins_one_of(text: str, typed: list[str]) -> bool:
    """Whether a paragraph speaks of a command that a block shows whole."""
    return any(whole == text or whole.startswith(f"{text} ") for whole in typed)
