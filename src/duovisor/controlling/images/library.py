"""The images that start from a disk: each a read-only volume of the pool ``images``, and its description.

The volume comes first and the description last, which is what makes the image visible; a volume without one
is what an interrupted build left, and the next of its name takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.images import debian, store
from duovisor.controlling.images.boot_files import INITRD, KERNEL, take_boot_files
from duovisor.controlling.images.download import Wanted, fetched
from duovisor.controlling.images.errors import ImageBrokenError, ImageExistsError, ImageNotFoundError
from duovisor.controlling.images.image import Image
from duovisor.controlling.storage.errors import VolumeNotFoundError
from duovisor.controlling.storage.inbox import BLOCK_BYTES, Inbox
from duovisor.controlling.storage.records import ImageFormat, VolumeFormat, VolumeRef
from duovisor.controlling.storage.steps import in_thread
from duovisor.controlling.storage.uploads import Upload
from duovisor.controlling.storage.views import get_volume

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from duovisor.controlling.storage.records import VolumeView
    from duovisor.controlling.storage.storage import Storage
    from duovisor.controlling.vms.records import Progress
    from duovisor.directories import Directories

    BuildSystem = Callable[[str, Path, Progress], Awaitable[None]]

IMAGE_POOL = "images"
DISKS_FOLDER, BUILDS_FOLDER, DOWNLOADS_FOLDER = "image-disks", "image-builds", "downloads"
MADE_PERCENT = 70  # the rest is taking it into the pool


class About(NamedTuple):
    """What an image's description says that its files do not."""

    description: str
    source: str
    recipe: str = ""
    user: str = ""
    guest_agent: bool = False
    command_line: str = ""
    boot_files: Path | None = None  # a folder with a kernel and its initial RAM disk


class Library:
    """The disk images of one host; every method raises ``DuovisorError``."""

    def __init__(self, storage: Storage, directories: Directories) -> None:
        self._storage = storage
        self._directories = directories

    @property
    def _builds(self) -> Path:
        return self._directories.state / BUILDS_FOLDER

    def sweep(self) -> None:
        """Remove what a build left that died with a service; before anything else is done."""
        shutil.rmtree(self._builds, ignore_errors=True)

    def require_absent(self, name: str) -> None:
        """Raises ``ImageExistsError``."""
        if name in store.list_names(self._directories):
            raise ImageExistsError(
                f"there is an image {name!r} already",
                remedy=f"choose another name, or: duovisor image delete {name}",
            )

    async def build(self, name: str, build_system: BuildSystem, progress: Progress) -> None:
        """Build the Debian image under a name of one's own. Raises ``ImageBuildError``."""
        self.require_absent(name)
        debian.check_host()
        self._builds.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = Path(tempfile.mkdtemp(dir=self._builds))
        try:
            await build_system(
                debian.NAME, folder, lambda percent, said: progress(percent * MADE_PERCENT // 100, said)
            )
            about = About(
                "Debian 12, cloud-init, sshd",
                f"packages of {debian.SUITE}",
                recipe=debian.NAME,
                user=debian.USER,
                guest_agent=True,
                command_line=debian.build_command_line(),
                boot_files=folder,
            )
            await self._take_file(name, folder / debian.DISK, Upload(ImageFormat.RAW), about, progress)
        finally:
            await in_thread(shutil.rmtree, folder, ignore_errors=True)

    async def pull(self, name: str, wanted: Wanted, user: str, progress: Progress) -> None:
        """Fetch an image. Raises ``DownloadError``, and as ``receive``."""
        self.require_absent(name)
        folder, cancelled = self._directories.cache / DOWNLOADS_FOLDER, asyncio.Event()

        def show(done: int, total: int) -> None:
            progress(MADE_PERCENT * done // total if total else 0, f"{done >> 20} MiB fetched")

        with ExitStack() as files:
            fetching = asyncio.create_task(
                in_thread(files.enter_context, fetched(wanted, folder, show, cancelled.is_set))
            )
            try:
                path = await asyncio.shield(fetching)
            except asyncio.CancelledError:
                cancelled.set()
                with contextlib.suppress(Exception):
                    await fetching
                raise
            about = About("fetched disk", wanted.url, user=user)
            await self._take_file(name, path, Upload(sha256=wanted.sha256), about, progress)

    async def receive(
        self, name: str, upload: Upload, inbox: Inbox, about: About, progress: Progress
    ) -> None:
        """Make an image of what comes through ``inbox``. Raises as ``Storage.receive``."""
        self.require_absent(name)
        ref = VolumeRef(pool=IMAGE_POOL, name=name)
        folder = str(self._directories.state / DISKS_FOLDER)
        await self._storage.pools.create(IMAGE_POOL, folder, or_get=True)
        if (
            await self._storage.volumes.find(ref) is not None
        ):  # without a description: a build that was killed
            await self._storage.delete(ref)
        await self._storage.receive(
            ref, upload._replace(to=VolumeFormat.QCOW2, read_only=True), inbox, progress
        )
        try:
            await in_thread(self._describe, name, await get_volume(self._storage, ref), about)
        except BaseException:
            await self._storage.delete(ref)
            raise

    async def delete(self, name: str) -> None:
        """Delete an image of any kind. Raises ``ImageNotFoundError``, or ``VolumeInUseError`` for one that
        has linked clones."""
        volume = None
        with contextlib.suppress(ImageBrokenError):
            volume = (await asyncio.to_thread(store.load_image, name, self._directories)).volume
        if volume is not None:
            with contextlib.suppress(VolumeNotFoundError):
                await self._storage.delete(VolumeRef.parse(volume))
        await in_thread(store.delete_image, name, self._directories)

    def load_template(self, name: str) -> Image:
        """An image of whose disk VMs get clones. Raises ``ImageNotFoundError`` or ``ImageBrokenError``."""
        image = store.load_image(name, self._directories)
        if image.volume is None:
            raise ImageNotFoundError(
                f"image {name!r} has no disk that could be cloned", remedy="duovisor image list"
            )
        return image

    async def _take_file(
        self, name: str, path: Path, upload: Upload, about: About, progress: Progress
    ) -> None:
        inbox = Inbox(await asyncio.to_thread(os.path.getsize, path))

        def show(percent: int, said: str) -> None:
            progress(MADE_PERCENT + (100 - MADE_PERCENT) * percent // 100, said)

        feeding = asyncio.create_task(_feed(inbox, path))
        try:
            await self.receive(name, upload, inbox, about, show)
        finally:
            inbox.abandon()
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    def _describe(self, name: str, volume: VolumeView, about: About) -> None:
        """Put the description in place, which makes the image visible."""
        with store.lock(self._directories), store.start_folder(name, self._directories) as folder:
            files: tuple[str, ...] = ()
            command_line, version = about.command_line, ""
            if about.boot_files is not None:
                files = (debian.KERNEL, debian.INITRD)
                for file in files:
                    shutil.copyfile(about.boot_files / file, folder / file)
            elif (found := take_boot_files(Path(volume.path), folder)) is not None:
                files, command_line, version = (KERNEL, INITRD), found.command_line, found.version
            store.write_description(
                Image(
                    name=name,
                    description=about.description,
                    kernel=files[0] if files else None,
                    initrd=files[1] if files else None,
                    command_line=command_line,
                    kernel_version=version,
                    volume=f"{volume.pool}/{volume.name}",
                    disk_bytes=volume.allocated_bytes or 0,
                    user=about.user,
                    guest_agent=about.guest_agent,
                    source=about.source,
                    recipe=about.recipe,
                    built_at=datetime.now(UTC).replace(microsecond=0),
                    sha256={file: store.compute_sha256(folder / file) for file in files},
                    folder=folder,
                )
            )


async def _feed(inbox: Inbox, path: Path) -> None:
    """Pass a file on to who takes it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        offset = 0
        while block := await in_thread(os.pread, descriptor, BLOCK_BYTES, offset):
            offset += len(block)
            if not await inbox.put(block):
                return
    finally:
        os.close(descriptor)
        await inbox.put(None)
