"""The images of this host: find, list, delete, and put a new one in place in one step.

An image appears under its name only when it is complete: it is made in a folder beside (``.building-*``),
written through to the disk and renamed. One lock serialises builds and deletions; who holds it removes what
a killed build left.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from duovisor.controlling.images.errors import ImageBrokenError, ImageBuildError, ImageNotFoundError
from duovisor.controlling.images.image import DESCRIPTION_FILE, Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duovisor.directories import Directories

_BUILDING = ".building-"
_DELETING = ".deleting-"
_LOCK = ".lock"


def load_image(name: str, directories: Directories) -> Image:
    """The image of this name; raises ``ImageNotFoundError`` or ``ImageBrokenError``."""
    folder = directories.images / name
    if not _is_name(name) or not folder.is_dir():
        remedy = "duovisor image build probe" if name == "probe" else "duovisor image list"
        raise ImageNotFoundError(f"there is no image {name!r} in {directories.images}", remedy=remedy)
    remedy = f"duovisor image build {name} --force" if name == "probe" else f"duovisor image delete {name}"
    try:
        content = json.loads((folder / DESCRIPTION_FILE).read_text())
        image = Image.model_validate({**content, "folder": folder})
    except ValidationError as error:
        first = error.errors()[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ImageBrokenError(f"image {name!r} cannot be used: {said}", remedy=remedy) from error
    except (OSError, ValueError, TypeError) as error:
        said = str(error).splitlines()[0]
        raise ImageBrokenError(f"image {name!r} cannot be read: {said}", remedy=remedy) from error
    for path in image.file_paths:
        if not path.is_file():
            raise ImageBrokenError(f"image {name!r} lacks its file {path}", remedy=remedy)
    return image


def list_images(directories: Directories) -> list[Image]:
    """Every image that can be used, by name; what cannot be read is left out."""
    images = []
    for name in list_names(directories):
        with contextlib.suppress(ImageBrokenError):
            images.append(load_image(name, directories))
    return images


def list_names(directories: Directories) -> list[str]:
    """The names of all images, of broken ones too."""
    try:
        entries = sorted(os.listdir(directories.images))
    except FileNotFoundError:
        return []
    return [name for name in entries if _is_name(name) and (directories.images / name).is_dir()]


def delete_image(name: str, directories: Directories) -> None:
    """Delete an image; a VM that runs from it keeps its open files. Raises ``ImageNotFoundError``."""
    with contextlib.suppress(ImageBrokenError):
        load_image(name, directories)
    with lock(directories):
        doomed = directories.images / f"{_DELETING}{name}-{os.getpid()}"
        try:
            (directories.images / name).rename(doomed)
        except FileNotFoundError:
            raise ImageNotFoundError(f"there is no image {name!r} any more") from None
        shutil.rmtree(doomed)


def find_damage(image: Image) -> list[str]:
    """The names of files whose content is not what was built."""
    return [path.name for path in image.file_paths if compute_sha256(path) != image.sha256.get(path.name)]


def compute_sha256(path: Path) -> str:
    """A file's checksum in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(directories: Directories, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of the image folder; ``on_wait`` is called once when another process holds it."""
    try:
        directories.images.mkdir(parents=True, exist_ok=True)
        file = (directories.images / _LOCK).open("w")
    except OSError as error:
        raise ImageBuildError(
            f"cannot write to {directories.images}: {error.strerror}",
            remedy="run as the folder's owner, or set DUOVISOR_STATE_DIR",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        _remove_leftovers(directories)
        yield


@contextlib.contextmanager
def start_scratch(directories: Directories) -> Iterator[Path]:
    """A folder for what a build needs only meanwhile; the caller holds ``lock``."""
    with tempfile.TemporaryDirectory(prefix=f"{_BUILDING}scratch-", dir=directories.images) as folder:
        yield Path(folder)


@contextlib.contextmanager
def start_folder(name: str, directories: Directories) -> Iterator[Path]:
    """A folder to make image ``name`` in; put in place when the block ends well, removed otherwise.

    The caller holds ``lock``.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{_BUILDING}{name}-", dir=directories.images))
    try:
        yield folder
        folder.chmod(0o755)
        _write_through(folder)
        _put_in_place(folder, directories.images / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_description(image: Image) -> None:
    """Write ``image.json`` into the image's folder."""
    (image.folder / DESCRIPTION_FILE).write_text(image.model_dump_json(indent=2) + "\n")


def _is_name(name: str) -> bool:
    return bool(name) and not name.startswith(".") and "/" not in name and len(name) <= 100


def _remove_leftovers(directories: Directories) -> None:
    for path in directories.images.iterdir():
        if path.name.startswith((_BUILDING, _DELETING)):
            shutil.rmtree(path, ignore_errors=True)


def _write_through(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put_in_place(folder: Path, final: Path) -> None:
    """Rename; a folder that is there already is moved away first, since rename replaces only an empty one."""
    old = final.with_name(f"{_DELETING}{final.name}-{os.getpid()}")
    if final.exists():
        final.rename(old)
    folder.rename(final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(old, ignore_errors=True)
