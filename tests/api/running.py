"""A running service: a real process, a real Unix socket, and a client that checks every reply."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from tests.api.document import ROOT, check_reply
from tests.networks import enter_network, why_no_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

START_TIMEOUT_S = 30.0
SHOWN_STATES = ("pending", "running")


class Api(httpx.Client):
    """A client of the service; a reply that is not in the OpenAPI document fails the test."""

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        response = super().send(request, **options)
        if not options.get("stream"):
            check_reply(response)
        return response

    def make_vm(self, name: str, **spec: Any) -> httpx.Response:
        """Define a VM."""
        response = self.post("/v1/vms", json={"spec": {"name": name, **spec}})
        assert response.status_code == 201, response.text
        return response

    def act(self, name: str, action: str) -> dict[str, Any]:
        """Do an action to its end; returns the operation."""
        response = self.post(f"/v1/vms/{name}/{action}")
        assert response.status_code == 202, response.text
        return self.finish(response)

    def finish(self, accepted: httpx.Response) -> dict[str, Any]:
        """Follow an operation that was accepted to its end."""
        identifier = accepted.json()["id"]
        assert accepted.headers["location"] == f"/v1/operations/{identifier}"
        with self.stream("GET", "/v1/events/stream", params={"after": 0}) as stream:
            for event in read_events(stream):
                if event.get("operation") == identifier and event["outcome"] != "started":
                    break
        operation: dict[str, Any] = self.get(f"/v1/operations/{identifier}").json()
        assert operation["state"] not in SHOWN_STATES
        return operation


def read_events(stream: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream as they come."""
    for line in stream.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


class RunningService:
    """The process and its folders; it can be killed and started again on the same state."""

    def __init__(self, folder: Path, config: str = "", environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.extra_environment = environment or {}
        self.socket = folder / "run/duovisord.sock"
        self.config = folder / "duovisord.toml"
        self.config.write_text(config)
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **self.extra_environment,
            "DUOVISOR_STATE_DIR": str(self.folder / "state"),
            "DUOVISOR_RUNTIME_DIR": str(self.folder / "run"),
            "DUOVISOR_CACHE_DIR": str(self.folder / "cache"),
        }

    def start(self) -> None:
        """Start it and wait until it says that it is ready, as systemd would."""
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notify:
            address = self.folder / "notify"
            address.unlink(missing_ok=True)
            notify.bind(str(address))
            notify.settimeout(START_TIMEOUT_S)
            with self._enter_network(), self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "tests.api.fake_service", "--config", str(self.config)],
                    cwd=ROOT,
                    env={**self.environment, "NOTIFY_SOCKET": str(address)},
                    stdout=log,
                    stderr=log,
                )
            assert notify.recv(100) == b"READY=1", self.log.read_text()

    def _enter_network(self) -> AbstractContextManager[None]:
        """Networks are made in a namespace of the service's own; who asks over HTTPS must be in the same."""
        is_remote = "[https]" in self.config.read_text()
        return contextlib.nullcontext() if why_no_namespace() or is_remote else enter_network()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(timeout=START_TIMEOUT_S)
        self.process = None
        return status

    def connect(self, token: str | None = None) -> Api:
        """A client over the Unix socket."""
        return Api(
            transport=httpx.HTTPTransport(uds=str(self.socket)),
            base_url="http://duovisord",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=20.0,
        )


@contextlib.contextmanager
def start_service(
    config: str = "", folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[RunningService]:
    """A service of its own, ended and its folders removed when the block is left."""
    with tempfile.TemporaryDirectory(prefix="duovisor-api-") as made:
        service = RunningService(folder or Path(made), config, environment)
        service.start()
        try:
            yield service
        finally:
            if service.process is not None:
                service.end()
