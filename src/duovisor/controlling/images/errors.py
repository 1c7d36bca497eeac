"""Errors of images and of the probe guest's side of the conversation."""

from __future__ import annotations

from duovisor.controlling.errors import ControllingError


class ImageNotFoundError(ControllingError):
    """No image has this name."""

    code = "image-not-found"


class ImageBrokenError(ControllingError):
    """The image's description cannot be read, or a file of it is missing."""

    code = "image-broken"


class ImageBuildError(ControllingError):
    """An image could not be built from what this host has."""

    code = "image-build-failed"


class ImageExistsError(ControllingError):
    """There is an image of this name already."""

    code = "image-exists"


class ImageUseError(ControllingError):
    """The image cannot be used in this way."""

    code = "image-use"


class DownloadError(ControllingError):
    """An image could not be fetched, or is not what it should be."""

    code = "download-failed"


class GuestTimeoutError(ControllingError):
    """The guest did not say what was waited for in time."""

    code = "guest-timeout"


class GuestGoneError(ControllingError):
    """The line to the guest was closed from the other side."""

    code = "guest-gone"


class GuestProtocolError(ControllingError):
    """The guest said something that is not in its protocol."""

    code = "guest-protocol"


class StorageJobError(ControllingError):
    """fio did not run in the guest, or its report cannot be read."""

    code = "storage-job-failed"
