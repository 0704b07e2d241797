"""README and docs/: their commands exist with these flags, their links lead somewhere, and the page
of limits is what the tables say.

Alone: pytest tests/repository/test_docs.py
"""

import argparse
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, list[str]]]:
    """(where it stands, words) of every command line in a fence; a backslash joins lines."""
    found = []
    for page in PAGES:
        for block in _FENCE.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in ("fastmtp", "sglang", "python", "make", "pip", "pytest"):
                    found.append((f"{page.name}: {line.strip()}", words))
    return found


@cache
def cli() -> Any:
    from fastmtp_sglang.cli import app

    return typer.main.get_command(app)


@cache
def server_flags() -> set[str]:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return set(parser._option_string_actions) | {"--config"}


def flags(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}


def test_there_are_commands():
    assert len(commands()) > 25
    assert {words[0] for _, words in commands()} >= {"fastmtp", "sglang", "make"}


@pytest.mark.parametrize(("where", "words"), commands(), ids=[where for where, _ in commands()])
def test_commands_exist(where, words):
    program, *rest = words
    if program == "fastmtp":
        # Behind a bare -- stand flags of `sglang serve`.
        split = rest.index("--") if "--" in rest else len(rest)
        own, server = rest[:split], rest[split:]
        command = cli()
        while own and own[0] in getattr(command, "commands", {}):
            command = command.commands[own.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        known |= {o for parameter in command.params for o in parameter.secondary_opts}
        assert command is not cli(), "no such command"
        assert flags(own) <= known | {"--help"}
        assert flags(server) <= server_flags()
    elif program == "sglang":
        assert rest[0] == "serve"
        assert flags(rest) <= server_flags()
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets
    elif program == "python":
        assert rest[0] == "-m"
        assert importlib.util.find_spec(rest[1])
    elif program == "pytest":
        assert all((ROOT / path).exists() for path in rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    named = re.findall(
        r"`((?:tests|configs|fastmtp_sglang|benchmarks|kernels)/[^`* ]*)`", page.read_text()
    )
    for path in named:
        assert (ROOT / path).exists(), path


def test_the_page_of_limits_is_made_from_the_tables():
    from fastmtp_sglang.doctor.support import page

    text = (ROOT / "docs/limits.md").read_text()
    assert text == page(), "run `python -m fastmtp_sglang.doctor.support > docs/limits.md`"
