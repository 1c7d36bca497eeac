"""LVM as ``lvm`` shows it: what it printed on Debian 12 (2.03.16), over files that stand for devices.

What there is lies in one JSON file, so that it outlives a killed process, as LVM's own does: a file beside it
that it does not name was never made, or is gone.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from duovisor import process
from duovisor.controlling.storage import lvm, thin_pool
from duovisor.process import ProgramFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

GROUP, POOL = "vg-0", "thin"
EXTENT_BYTES = 4 << 20
POOL_BYTES = 200 << 20
FLAGS = ("-q", "-kn", "-ay", "-K", "-f", "-s")
# what lvs printed of a thin pool, and of a thin volume in it
POOL_ROW = {
    "lv_name": POOL, "lv_size": str(POOL_BYTES), "pool_lv": "", "segtype": "thin-pool", "lv_tags": "",
    "lv_active": "active", "data_percent": "0.00", "metadata_percent": "10.94", "lv_when_full": "queue",
    "lv_health_status": "", "zero": "zero",
}  # fmt: skip
THIN_ROW = {
    "lv_name": "others", "lv_size": "67108864", "pool_lv": POOL, "segtype": "thin", "lv_tags": "",
    "lv_active": "active", "data_percent": "0.00", "metadata_percent": "", "lv_when_full": "",
    "lv_health_status": "", "zero": "zero",
}  # fmt: skip


class FakeLvm:
    """One volume group. ``root`` holds its devices and its state."""

    def __init__(self, root: Path) -> None:
        self.dev = root / "dev"
        self.folder = self.dev / GROUP
        self._state = root / "lvm.json"
        if not self._state.exists():
            self.folder.mkdir(parents=True)
            self._write({POOL: POOL_ROW})
            self._add("others", THIN_ROW)
        for path in self.folder.iterdir():
            if path.name not in self.rows:
                path.unlink()
        self.asked: list[str] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take LVM's place."""
        patch.setattr(lvm, "find_program", lambda: "lvm")
        patch.setattr(process, "run", self._run)
        patch.setattr(thin_pool, "DEV", self.dev)

    @property
    def rows(self) -> dict[str, dict[str, str]]:
        """What there is, by name."""
        found: dict[str, dict[str, str]] = json.loads(self._state.read_text())
        return found

    @property
    def names(self) -> list[str]:
        """The logical volumes but the thin pool and another's."""
        return sorted(set(self.rows) - {POOL, "others"})

    def change(self, name: str, **values: str) -> None:
        """Change what is said of one."""
        rows = self.rows
        rows[name] |= values
        self._write(rows)

    def _write(self, rows: dict[str, dict[str, str]]) -> None:
        half = self._state.with_suffix(".new")
        half.write_text(json.dumps(rows))
        half.replace(self._state)

    def _add(self, name: str, row: dict[str, str], content: Path | None = None) -> None:
        if content is None:
            (self.folder / name).touch()
            os.truncate(self.folder / name, int(row["lv_size"]))
        else:
            shutil.copyfile(content, self.folder / name)
        self._write({**self.rows, name: {**row, "lv_name": name}})

    def _run(self, argv: Sequence[str], **_: Any) -> str:
        command, words = argv[1], [word for word in argv[2:] if word not in FLAGS]
        self.asked.append(command)
        if command == "lvs":
            return self._report(words[-1])
        options = dict(zip(words[:-1:2], words[1::2], strict=False)) if command != "lvrename" else {}
        match command:
            case "lvcreate" if "-s" in argv:
                source = self._find(words[-1])
                snapshot = {**self.rows[source], "lv_tags": options["--addtag"]}
                self._add(self._free(options["-n"]), snapshot, self.folder / source)
            case "lvcreate":
                assert options["-T"] == f"{GROUP}/{POOL}"
                row = {**THIN_ROW, "lv_size": _round(options["-V"]), "lv_tags": options["--addtag"]}
                self._add(self._free(options["-n"]), row)
            case "lvrename":
                old, new = words[-2:]
                self._free(new)
                row = self.rows[self._find(f"{GROUP}/{old}")]
                os.link(self.folder / old, self.folder / new)
                rows = self.rows
                del rows[old]
                self._write({**rows, new: {**row, "lv_name": new}})
                (self.folder / old).unlink()
            case "lvremove":
                name = self._find(words[-1])
                assert name not in (POOL, "others"), "that is not ours"
                rows = self.rows
                del rows[name]
                self._write(rows)
                (self.folder / name).unlink()
            case "lvextend":
                name = self._find(words[-1])
                os.truncate(self.folder / name, int(_round(options["-L"])))
                self.change(name, lv_size=_round(options["-L"]))
            case "lvchange":
                name = self._find(words[-1])
                self.change(name, **({"lv_when_full": "error"} if "--errorwhenfull" in words else {}))
                self.change(name, lv_active="active")
            case _:
                raise AssertionError(f"lvm {command} is not known here")
        return ""

    def _report(self, group: str) -> str:
        if group != GROUP:
            raise ProgramFailedError(
                ["lvm"], 5, f'Volume group "{group}" not found; Cannot process volume group {group}'
            )
        return json.dumps({"report": [{"lv": list(self.rows.values())}]})

    def _find(self, full: str) -> str:
        group, _, name = full.partition("/")
        if group != GROUP or name not in self.rows:
            raise ProgramFailedError(["lvm"], 5, f'Failed to find logical volume "{full}"')
        return name

    def _free(self, name: str) -> str:
        if name in self.rows:
            said = f'Logical Volume "{name}" already exists in volume group "{GROUP}"'
            raise ProgramFailedError(["lvm"], 5, said)
        return name


def _round(size: str) -> str:
    size_bytes = int(size.removesuffix("b"))
    assert not size_bytes % 512, "LVM takes whole sectors"
    return str(-(-size_bytes // EXTENT_BYTES) * EXTENT_BYTES)
