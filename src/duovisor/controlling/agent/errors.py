"""Errors of the guest agent.

::

    ControllingError
    └── AgentError             agent          what the guest's agent says cannot be understood
        ├── AgentSilentError   agent-silent   nobody answers in the guest, or not in time
        └── AgentRefusedError  agent-refused  the agent cannot do it, and says why
"""

from __future__ import annotations

from duovisor.controlling.errors import ControllingError


class AgentError(ControllingError):
    """What the guest's agent says cannot be understood."""

    code = "agent"


class AgentSilentError(AgentError):
    """Nobody answers in the guest, or not in time."""

    code = "agent-silent"


class AgentRefusedError(AgentError):
    """The agent cannot do what it was asked for."""

    code = "agent-refused"
