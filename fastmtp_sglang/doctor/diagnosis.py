"""What `fastmtp doctor` looks at: each check returns findings, a problem always with its fix.

The checks follow the way of a server start: what is installed, which plugins SGLang would load in
this environment, which device it would use, whether FASTMTP gets registered, and whether a model
and a head fit together. They change nothing; asked about a built-in model, they build it.
"""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models import catalog
from fastmtp_sglang.models.built_in import BuiltIn

PLUGIN, PLATFORM = "fastmtp", "fastmtp_cpu"
_ENTRY_POINTS = {"sglang.srt.plugins": PLUGIN, "sglang.srt.platforms": PLATFORM}
_REINSTALL = "pip install --force-reinstall --no-deps fastmtp-sglang (in a clone: pip install -e .)"

# In a process of its own: SGLang's plugins change the process that loads them.
_REGISTER = """
import logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.speculative.spec_registry import get_spec
sys.exit(0 if get_spec("FASTMTP") else 1)
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is set if and only if it is a problem."""

    name: str
    found: str
    fix: str | None = None


def diagnose(
    model: str | None = None,
    draft: Path | None = None,
    vocabulary: Path | None = None,
    server: Sequence[str] = (),
) -> Iterator[Finding]:
    """Yield the findings about this environment, about a model and what drafts for it, and about
    the arguments of a server.
    """
    problems = False
    for check in (versions, hooks, installation, whitelist, platform_choice, device):
        for finding in check():
            problems |= finding.fix is not None
            yield finding
    if not problems:  # a registration that cannot succeed would only repeat what is known
        yield registration()
    yield from map(built_in_model, catalog.MODELS.values())
    if model is not None:
        yield from model_and_head(model, draft, vocabulary)
    if server:
        yield from server_arguments(server)


def versions() -> Iterator[Finding]:
    """Look at the distributions that must be there, and at a second copy of our own."""
    from fastmtp_sglang.contract.compat import SUPPORTED

    yield Finding("python", sys.version.split()[0])
    for name in ("fastmtp-sglang", "sglang", "torch", "transformers"):
        # Two copies on sys.path: Python imports the first, the plugins may come from the other.
        found = sorted({copy.version for copy in importlib.metadata.distributions(name=name)})
        if not found:
            fix = f"pip install 'sglang{SUPPORTED}'" if name == "sglang" else f"pip install {name}"
            yield Finding(name, "not installed", fix)
        elif len(found) > 1:
            yield Finding(
                name,
                f"installed twice: {' and '.join(found)}",
                f"pip uninstall {name} until none is left, then install one",
            )
        else:
            yield Finding(name, found[0])


def hooks() -> Iterator[Finding]:
    """Compare the installed SGLang with the table of what we build on."""
    from fastmtp_sglang.contract import compat

    if not any(importlib.metadata.distributions(name="sglang")):
        return
    mismatches = compat.check()
    for mismatch in mismatches:
        yield Finding("SGLang hook", str(mismatch), f"pip install 'sglang=={compat.TESTED}'")
    if not mismatches:
        yield Finding("SGLang hooks", f"all {len(compat.HOOKS)} as expected")


def installation() -> Iterator[Finding]:
    """Look for our two entry points, and for others that bear their names."""
    for group, name in _ENTRY_POINTS.items():
        owners = [
            entry_point.dist.name if entry_point.dist else "?"
            for entry_point in importlib.metadata.entry_points(group=group)
            if entry_point.name == name
        ]
        if owners == ["fastmtp-sglang"]:
            yield Finding(f"entry point {name}", f"in {group}")
        elif not owners:
            yield Finding(f"entry point {name}", f"missing in {group}", _REINSTALL)
        else:
            others = [owner for owner in owners if owner != "fastmtp-sglang"]
            yield Finding(
                f"entry point {name}",
                f"{group} has it from {' and '.join(owners)}; SGLang uses the last one",
                f"pip uninstall {' '.join(others)}",
            )


def whitelist() -> Iterator[Finding]:
    """Read SGLANG_PLUGINS as SGLang does: a comma-separated list, empty for all."""
    value = os.environ.get("SGLANG_PLUGINS", "")
    allowed = {name.strip() for name in value.split(",") if name.strip()}
    if not allowed:
        yield Finding("SGLANG_PLUGINS", "not set: every plugin is loaded")
        return
    known = {
        entry_point.name
        for group in _ENTRY_POINTS
        for entry_point in importlib.metadata.entry_points(group=group)
    }
    needed = {PLUGIN, PLATFORM} if _our_platform() else {PLUGIN}
    fix = f"export SGLANG_PLUGINS={','.join(sorted(allowed & known | needed))}, or unset it"
    missing, unknown = sorted(needed - allowed), sorted(allowed - known)
    if missing:
        yield Finding("SGLANG_PLUGINS", f"{value} leaves out {' and '.join(missing)}", fix)
    if unknown:
        yield Finding(
            "SGLANG_PLUGINS",
            f"{value}: no plugin named {' or '.join(unknown)} is installed; SGLang ignores that",
            fix,
        )
    if not missing and not unknown:
        yield Finding("SGLANG_PLUGINS", value)


def platform_choice() -> Iterator[Finding]:
    """Read the variables that take the device, or our plugin with it, out of the game."""
    selected = os.environ.get("SGLANG_PLATFORM", "")
    if selected and selected != PLATFORM:
        yield Finding(
            "SGLANG_PLATFORM",
            f"{selected}: SGLang then skips every plugin of the distributions whose platform was "
            "not selected, FASTMTP included",
            "unset SGLANG_PLATFORM",
        )
    elif selected and _our_platform() is None:
        yield Finding(
            "SGLANG_PLATFORM",
            f"{selected}, which does not serve this machine: SGLang will not start",
            "unset SGLANG_PLATFORM",
        )
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        yield Finding(
            "SGLANG_USE_CPU_ENGINE",
            "1 selects SGLang's own CPU engine, which needs another build of its kernels and "
            "ignores the temperature while it speculates",
            "unset SGLANG_USE_CPU_ENGINE",
        )
    if os.environ.get("FASTMTP_CPU", "1") == "0" and not _accelerator():
        yield Finding(
            "FASTMTP_CPU",
            "0 turns our CPU platform off, and torch sees no accelerator",
            "unset FASTMTP_CPU",
        )


def device() -> Iterator[Finding]:
    """Tell what SGLang would run on."""
    if accelerator := _accelerator():
        yield Finding("device", f"{accelerator}; platform: SGLang's own")
    elif platform := _our_platform():
        import torch

        threads = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
        yield Finding("device", f"cpu ({threads}); platform: {platform}")
    else:
        yield Finding(
            "device",
            "cpu, and the CPU platform of fastmtp-sglang stands back",
            "mend the variables named above; with none set, uninstall the platform plugin that "
            "claims this machine",
        )


def registration() -> Finding:
    """Load SGLang's plugins as a server would and ask for the algorithm."""
    result = subprocess.run(
        [sys.executable, "-c", _REGISTER], capture_output=True, text=True, check=False
    )
    if result.returncode == 0:
        return Finding("registration", "--speculative-algorithm fastmtp is available")
    last = (result.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding(
        "registration",
        f"SGLang loaded its plugins and does not know FASTMTP: {last}",
        f"{_REINSTALL}; if it stays, report the log of `sglang serve`",
    )


def built_in_model(model: BuiltIn) -> Finding:
    """Tell whether a built-in model is there and whole; that it is missing is no problem."""
    from fastmtp_sglang.files import cache

    name, damage = f"built-in model {model.name}", model.checkpoint_damage()
    if damage is None:
        return Finding(name, f"{model.title} is in the cache, all SHA-256 sums as written")
    path = cache.directory() / model.folder
    if path.exists():
        return Finding(name, f"{path}: {damage}", f"rm -r {path} (it is built again)")
    try:
        return Finding(name, f"will be built on first use from {model.gguf()[0]}")
    except FastMTPError as error:
        return Finding(name, f"not available: {error}")


def model_and_head(
    model: str, draft: Path | None, vocabulary: Path | None = None
) -> Iterator[Finding]:
    """Check that the draft (None: the model's own MTP layer) can draft for `model`.

    So is the draft vocabulary, None for the one beside the head, with which it would be served.
    """
    from fastmtp_sglang.head.compatibility import check_compatible
    from fastmtp_sglang.servers.launch import require_directory
    from fastmtp_sglang.vocabulary.fit import beside_head, load_for

    name = "model and head"
    try:
        require_directory("--model", model)
        target = model
        if (ours := catalog.find(model)) is not None:  # as `fastmtp serve` takes it
            target = str(ours.checkpoint())
            draft = draft or ours.draft_head().path
        check_compatible(target, draft)
        yield Finding(name, f"{draft or 'its own MTP layer'} drafts for {model}")
        name = "draft vocabulary"
        vocabulary = vocabulary or beside_head(draft or target)
        if vocabulary is not None:
            load_for(vocabulary, target)
            yield Finding(name, f"{vocabulary} fits {model}")
    except FastMTPError as error:
        yield _refused(name, " ".join(str(error).split()))
    except (OSError, ValueError) as error:  # what transformers raises for what it cannot read
        yield Finding(
            name,
            f"cannot be read: {str(error).strip().splitlines()[0]}",
            "give directories with a config.json, or Hugging Face names that this machine can load",
        )


def server_arguments(arguments: Sequence[str]) -> Iterator[Finding]:
    """Ask whether `sglang serve` would start with these arguments."""
    from fastmtp_sglang.doctor.server_arguments import check

    refused = check(arguments)
    for message in refused:
        yield _refused("sglang serve", message)
    if not refused:
        yield Finding("sglang serve", f"takes {' '.join(arguments)}")


def _refused(name: str, message: str) -> Finding:
    """Our messages end with the way out, as a sentence of its own where there are several."""
    reason, _, fix = message.rpartition(". ")
    return Finding(name, reason or "refused", fix)


def _our_platform() -> str | None:
    from fastmtp_sglang.serving import cpu

    return cpu.activate()


def _accelerator() -> str | None:
    """Return type and name of torch's accelerator, None if there is none."""
    import torch

    if not torch.accelerator.is_available():
        return None
    kind = torch.accelerator.current_accelerator()
    name: Callable[[], str] | None = getattr(
        getattr(torch, str(kind), None), "get_device_name", None
    )
    return f"{kind} ({name()})" if name else str(kind)
