"""The agent's protocol as bytes: a JSON object a line, as QMP's (QEMU's docs/interop/qemu-ga.rst); pure."""

from __future__ import annotations

import json
from typing import Any

from duovisor.controlling.agent.errors import AgentError, AgentRefusedError

# in front of the answer to guest-sync-delimited, and of the question: no JSON, it resets the agent's parser
SENTINEL = b"\xff"
MAX_TEXT = 200


def build_command(command: str, **arguments: Any) -> bytes:
    """The line that asks for a command; an underscore stands for a hyphen."""
    request: dict[str, Any] = {"execute": command}
    if arguments:
        request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
    return json.dumps(request).encode() + b"\n"


def build_sync(number: int) -> bytes:
    """What begins a conversation: the agent forgets what it has half read, and answers with the number."""
    return SENTINEL + build_command("guest-sync-delimited", id=number)


def parse_reply(line: bytes) -> Any:
    """What an answer returns. Raises ``AgentRefusedError``, or ``AgentError`` for what is none."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AgentError("the guest's agent does not answer in JSON") from error
    match reply:
        case {"return": returned}:
            return returned
        case {"error": {"desc": str(description)}}:
            raise AgentRefusedError(f"the guest's agent refuses: {clean(description)}")
    raise AgentError("the guest's agent answers with something else than a result")


def clean(text: Any, limit: int = MAX_TEXT) -> str:
    """A guest's text as it may be shown: printable, on one line, not long; empty for what is no text."""
    if not isinstance(text, str):
        return ""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[:limit])
    return printable.strip()
