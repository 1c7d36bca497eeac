"""The specification that file, image and options add up to; what an image is, the service says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from duovisor.cli.vm_options import build_document

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.client.service import ServiceClient
    from duovisor.controlling.images.image import Image
    from duovisor.spec.vm import VirtualMachineSpec

# of an image, only the service sees these
_NOT_OF_AN_IMAGE = frozenset({"broken", "damaged", "size_bytes"})


def build_spec_from(
    spec_file: Path | None, options: dict[str, Any], find_image: Callable[[str], Image]
) -> VirtualMachineSpec:
    """The specification that file, image and options add up to. Raises ``DuovisorError``."""
    from duovisor.spec.loading import build_spec, load_document

    document = build_document(load_document(spec_file) if spec_file else {}, options)
    _find_drivers(document, spec_file.parent if spec_file else Path())
    image_name = document.pop("image", None) if options["image"] is None else options["image"]
    if image_name is not None:
        from duovisor.controlling.images.boot import add_image

        document = add_image(document, find_image(str(image_name)))
    document.setdefault("name", image_name or (spec_file.stem if spec_file else "vm"))
    return build_spec(document)


def _find_drivers(document: dict[str, Any], folder: Path) -> None:
    """Make the paths of drivers' files and keys absolute: ``folder`` is where the specification lies."""
    for key in ("devices", "disks"):
        entries = document.get(key)
        if isinstance(entries, list | tuple):  # else the check of the whole says what is wrong
            document[key] = [
                _find_files(entry, folder) if isinstance(entry, dict) else entry for entry in entries
            ]


def _find_files(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    from duovisor.spec.vm import DRIVER_SUFFIX

    found = dict(entry)
    if str(entry.get("driver", "")).endswith(DRIVER_SUFFIX):
        found["driver"] = str((folder / entry["driver"]).absolute())
    if isinstance(entry.get("key_file"), str) and entry["key_file"]:
        found["key_file"] = str((folder / entry["key_file"]).absolute())
    return found


def find_image(client: ServiceClient, name: str) -> Image:
    """An image of the service's host. Raises ``ApiError``."""
    from urllib.parse import quote

    from duovisor.client.errors import ApiError

    view = client.get(f"/v1/images/{quote(name, safe='')}")
    if view["broken"]:
        raise ApiError("image-broken", view["broken"], remedy=f"duovisor image build {name} --force")
    return build_image(view)


def find_kernel_image(client: ServiceClient, name: str) -> Image:
    """One that starts from its kernel, for a VM that goes with its command. Raises ``ApiError``."""
    from duovisor.client.errors import ApiError

    image = find_image(client, name)
    if image.volume is not None:
        raise ApiError(
            "image-use",
            f"image {name!r} starts from a disk, of which a VM needs a clone of its own",
            remedy=f"duovisor vm create --image {name} --name NAME --start",
        )
    return image


def build_image(view: dict[str, Any]) -> Image:
    """An image as the API shows it; what it was built from is not told."""
    from duovisor.controlling.images.image import Image

    known = {key: value for key, value in view.items() if key not in _NOT_OF_AN_IMAGE}
    return Image.model_validate({**known, "recipe": "", "sha256": {}})
