"""The driver in docs/channel.md works as printed."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

from duovisor.channel.frontend import FrontEnd

DOCUMENT = Path(__file__).parents[3] / "docs/channel.md"


def test_the_driver_in_the_documentation(tmp_path: Path) -> None:
    source = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict[str, object] = {}
    exec(compile(source, str(DOCUMENT), "exec"), names)
    serve = names["serve"]
    assert callable(serve)
    path = str(tmp_path / "channel.sock")
    with socket.socket(socket.AF_UNIX) as listening, FrontEnd(memory_bytes=1 << 20) as front:
        listening.bind(path)
        listening.listen()
        thread = threading.Thread(target=serve, args=(path,))
        thread.start()
        front.connect(listening.accept()[0])
        address, view = front.allocate(64)
        queue = front.queues[0]
        head = queue.prepare([], [(address, 32), (address + 32, 32)])
        queue.submit(head)
        queue.kick()
        assert queue.wait(5) == [(head, 64)]
        assert len(set(view)) > 20
        front.disconnect()
        thread.join(5)
        assert not thread.is_alive()
