"""The drivers, their tests and their VMs, as docs/write-a-driver.md prints them."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[3] / "docs/write-a-driver.md").read_text(encoding="utf-8")
DRIVER, DRIVER_TEST, DISK, DISK_TEST = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
VM_YAML, DISK_YAML = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
MODULES = re.findall(r"```\n(array .*?)```", TEXT, re.DOTALL)[0].split()
