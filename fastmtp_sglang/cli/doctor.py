"""`fastmtp doctor`: what would keep FASTMTP from working here, with the fix beside each problem."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmtp_sglang.models.license import AcceptLicense

if TYPE_CHECKING:
    from fastmtp_sglang.doctor.diagnosis import Finding


def doctor(
    server: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- SGLANG_FLAGS...]", help="Flags of `sglang serve`: would it start?"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model directory, Hugging Face name, or built-in model.")
    ] = None,
    draft: Annotated[
        Path | None, typer.Option(help="Head directory; needs --model. Default: its own layer.")
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Draft vocabulary; needs --model. Default: the one beside the head."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    accept_license: AcceptLicense = False,
) -> None:
    """Check this environment, whether a head can draft for a model, and a server's flags.

    The exit code is 1 if there is a problem.
    """
    from fastmtp_sglang.doctor.diagnosis import diagnose
    from fastmtp_sglang.errors import FastMTPError

    for flag, path in (("--draft", draft), ("--vocabulary", vocabulary)):
        if path is not None and model is None:
            raise FastMTPError(f"{flag} {path} without --model: say which model it shall draft for")
    findings = []
    for finding in diagnose(model, draft, vocabulary, server or ()):
        findings.append(finding)
        if not as_json:
            _print(finding)
    problems = [finding for finding in findings if finding.fix is not None]
    if as_json:
        checks = [vars(finding) for finding in findings]
        print(json.dumps({"problems": len(problems), "checks": checks}, indent=2))
    else:
        print("no problems" if not problems else f"problems: {len(problems)}")
    if problems:
        raise typer.Exit(1)


def _print(finding: "Finding") -> None:
    """Print a line, or two for a problem; not wrapped, so that a fix can be copied."""
    bad = finding.fix is not None
    mark = typer.style("problem" if bad else "ok     ", fg="red" if bad else "green")
    typer.echo(f"{mark} {finding.name}: {finding.found}")
    if bad:
        typer.echo(f"        fix: {finding.fix}")
