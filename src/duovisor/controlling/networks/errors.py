"""Errors of managed networks.

::

    ControllingError
    ├── NetworkNotFoundError   network-not-found   there is no network of that name
    ├── NetworkExistsError     network-exists      there is one already
    ├── NetworkRefusedError    network-refused     what was asked for cannot be done
    ├── NetworkInUseError      network-in-use      a VM needs it
    ├── SubnetRefusedError     subnet-refused      it overlaps the host's own, or another network's
    ├── ForwardExistsError     forward-exists      the port leads elsewhere already
    └── ForwardNotFoundError   forward-not-found
"""

from __future__ import annotations

from duovisor.controlling.errors import ControllingError


class NetworkNotFoundError(ControllingError):
    """There is no network of that name."""

    code = "network-not-found"


class NetworkExistsError(ControllingError):
    """There is a network of that name already."""

    code = "network-exists"


class NetworkRefusedError(ControllingError):
    """This cannot be a network, or cannot be done with it."""

    code = "network-refused"


class NetworkInUseError(ControllingError):
    """A VM's definition names the network, or a card is on it."""

    code = "network-in-use"


class SubnetRefusedError(ControllingError):
    """The subnet overlaps one that the host or another network has, or is not for private use."""

    code = "subnet-refused"


class ForwardExistsError(ControllingError):
    """The port of the host leads to a VM already, or a program of the host listens on it."""

    code = "forward-exists"


class ForwardNotFoundError(ControllingError):
    """No port like this is forwarded."""

    code = "forward-not-found"
