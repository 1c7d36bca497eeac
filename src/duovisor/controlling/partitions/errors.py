"""Errors about driver partitions; the tree is drawn in ``duovisor.errors``."""

from __future__ import annotations

from duovisor.controlling.errors import PartitionError


class PartitionGoneError(PartitionError):
    """A partition or its factory has ended, or no longer answers as it should."""

    code = "partition-gone"


class PartitionRefusedError(PartitionError):
    """A partition said that it cannot do what it was told to."""

    code = "partition-refused"
