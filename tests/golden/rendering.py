"""Launch plans as text that is read and compared line by line."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from duovisor.sandbox import build_sandbox_argv

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from duovisor.hypervisor.plan import LaunchPlan
    from duovisor.sandbox import Sandbox, SandboxTools


def render_argv(argv: Sequence[str]) -> list[str]:
    """One line an option, with its values; the program first."""
    lines = [argv[0]]
    for argument in argv[1:]:
        if argument.startswith("-") or lines[-1] == "  --":
            lines.append(f"  {argument}")
        else:
            lines[-1] += f" {argument}"
    return lines


def render_sandbox(sandbox: Sandbox, tools: SandboxTools) -> list[str]:
    """What stands before the program's own command line."""
    who = "root" if tools.as_root else "another user"
    return [f"sandbox, started by {who}:", *render_argv(build_sandbox_argv(sandbox, tools, ()))]


def render_plan(plan: LaunchPlan, tools: Sequence[SandboxTools]) -> list[str]:
    """Everything that a plan decides."""
    lines = [
        f"design: {plan.design}",
        f"sockets: {' '.join(plan.sockets)}",
        f"channels: {' '.join((*plan.channels, *plan.bound)) or 'none'}",
        f"memory: {plan.memory_mib} MiB in {plan.memory_file}",
        "",
        *render_argv(plan.argv),
        "",
    ]
    if plan.sandbox is None:
        return [*lines, "sandbox: none"]
    for each in tools:
        lines += [*render_sandbox(plan.sandbox, each), ""]
    return lines[:-1]


def render_difference(base: Sequence[str], other: Sequence[str]) -> list[str]:
    """The lines that differ, ``-`` for the base's and ``+`` for the other's."""
    changes = difflib.unified_diff(base, other, n=0, lineterm="")
    return [line for line in changes if not line.startswith(("---", "+++", "@@"))]


def replace_folder(lines: Sequence[str], folder: Path, name: str) -> str:
    """The lines as a file, a folder that is another one in each run replaced by ``name``."""
    return "\n".join(lines).replace(str(folder), name) + "\n"
