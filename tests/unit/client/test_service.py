"""The client against the real service: replies, refusals, operations, events and consoles across restarts."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from duovisor.client.endpoint import Endpoint
from duovisor.client.errors import ApiError, ReplyError, ServiceUnreachableError
from duovisor.client.service import ServiceClient, build_path, vm_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.api.running import RunningService

    from duovisor.client.connection import Call
    from duovisor.client.websocket import WebSocket


def define(client: ServiceClient, name: str) -> Any:
    return client.request("POST", "/v1/vms", {"spec": {"name": name}}).document


def test_paths() -> None:
    assert vm_path("a b/c") == "/v1/vms/a%20b%2Fc"
    assert build_path("/v1/x", {"a": None, "b": True, "c": 1}) == "/v1/x?b=true&c=1"
    assert build_path("/v1/x", {"a": None}) == "/v1/x"


def test_reply_and_refusal(client: ServiceClient, calls: list[Call]) -> None:
    assert define(client, "web")["record"]["name"] == "web"
    with pytest.raises(ApiError) as caught:
        define(client, "web")
    assert (caught.value.code, caught.value.status) == ("name-in-use", 409)
    assert caught.value.remedy == "choose another name"
    assert [(call.method, call.path, call.status) for call in calls] == [
        ("POST", "/v1/vms", 201),
        ("POST", "/v1/vms", 409),
    ]
    assert all(call.took_ms > 0 for call in calls)


def test_a_list_goes_on_over_pages(client: ServiceClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duovisor.client.service.PAGE", 2)
    for number in range(5):
        define(client, f"vm{number}")
    found = [vm["record"]["name"] for vm in client.list_all("/v1/vms")]
    assert found == [f"vm{number}" for number in range(5)]


def test_operations_are_followed_to_their_end(client: ServiceClient) -> None:
    define(client, "web")
    assert client.follow(client.act("web", "start"))["state"] == "done"
    assert client.get("/v1/vms/web")["status"]["state"] == "running"
    define(client, "refusing")
    with pytest.raises(ApiError, match="the VMM fell silent") as caught:
        client.follow(client.act("refusing", "start"))
    assert caught.value.code == "vmm-start-failed"


def test_progress_is_shown_and_a_cancel_ends_it(client: ServiceClient) -> None:
    define(client, "slow")
    operation = client.act("slow", "start")
    shown = []

    def show(state: dict[str, Any]) -> None:
        shown.append((state["progress"], state["message"]))
        if state["progress"] == 42 and state["state"] == "running":
            client.request("POST", f"/v1/operations/{operation['id']}/cancel")

    with pytest.raises(ApiError) as caught:
        client.follow(operation, show)
    assert caught.value.code == "operation-cancelled"
    assert (42, "being slow") in shown


def test_an_operation_that_the_services_death_interrupts(
    client: ServiceClient, service: RunningService
) -> None:
    define(client, "slow")
    operation = client.act("slow", "start")

    def restart() -> None:
        service.end(signal.SIGKILL)
        service.start()

    restarted = threading.Thread(target=restart)
    with pytest.raises(ApiError) as caught:
        client.follow(operation, lambda state: None if restarted.ident else restarted.start())
    restarted.join()
    assert caught.value.code == "operation-interrupted"


def test_events_go_on_across_a_restart(client: ServiceClient, service: RunningService) -> None:
    seen = []
    with contextlib.closing(client.events(0)) as events:
        for message in events:
            assert message is not None
            seen.append(message.document["action"])
            if seen == ["service.start"]:
                service.end(signal.SIGKILL)
                service.start()
                define(client, "web")
            if seen[-1] == "vm.create":
                break
    assert seen == ["service.start", "service.start", "vm.create"]


def test_a_console_speaks_both_ways(client: ServiceClient) -> None:
    define(client, "web")
    console = client.open_console("web")
    assert read(console, lambda seen: len(seen) >= 11) == b"web login: "
    console.send(b"root")
    assert read(console, lambda seen: len(seen) >= 4) == b"ROOT"
    console.send(b"x" * 40_000)
    assert read(console, lambda seen: len(seen) >= 40_000) == b"X" * 40_000
    console.close()


def test_a_console_tells_of_the_services_end(client: ServiceClient, service: RunningService) -> None:
    define(client, "web")
    console = client.open_console("web")
    service.end()
    read(console, lambda seen: console.closed is not None)
    assert console.closed is not None
    assert console.closed.code == 1001
    assert "the VM runs on" in console.closed.reason
    console.close()


def test_a_console_of_nobody(client: ServiceClient) -> None:
    with pytest.raises(ApiError) as caught:
        client.open_console("nobody")
    assert caught.value.code == "vm-not-found"


def read(console: WebSocket, is_enough: Callable[[bytes], bool]) -> bytes:
    seen = b""
    while not is_enough(seen):
        assert console.has_more or select.select([console], [], [], 10)[0]
        seen += b"".join(console.read())
    return seen


def test_nobody_there(tmp_path: Path) -> None:
    client = ServiceClient(Endpoint(tmp_path / "no.sock"))
    for attempt in (lambda: client.get("/v1/vms"), client.open_events, lambda: client.open_console("web")):
        with pytest.raises(ServiceUnreachableError, match="no service runs there") as caught:
            attempt()
        assert caught.value.is_absent


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"HTTP/1.1 500 No\r\n\r\n<html>"]
)
def test_something_else_there(tmp_path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with ServiceClient(Endpoint(tmp_path / "sock")) as client, pytest.raises(ReplyError):
            client.get("/v1/vms")
        thread.join()


def test_what_changes_something_is_not_sent_on_a_connection_that_has_ended(tmp_path: Path) -> None:
    """A service closes a connection on which nothing was asked for a while; a POST cannot be sent twice."""
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    closed = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(reply)
                closed.set()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with ServiceClient(Endpoint(tmp_path / "sock")) as client:
            client.get("/v1/service")
            closed.wait()
            assert client.request("POST", "/v1/vms/web/start").status == 200
        thread.join()
