"""Operations: progress, cancel, failure, history; and events of all that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.api.running import read_events, start_service

if TYPE_CHECKING:
    from tests.api.running import Api


def find_events(api: Api, object: str) -> list[tuple[str, str]]:
    """Action and outcome of every event about an object."""
    events = api.get("/v1/events", params={"limit": 1000}).json()["items"]
    return [(event["action"], event["outcome"]) for event in events if event["object"] == object]


def wait_progress(api: Api, id: str, wanted: int) -> dict[str, Any]:
    """An operation once it has come as far as that; it is asked for again and again, as a client would."""
    for _ in range(1000):
        operation: dict[str, Any] = api.get(f"/v1/operations/{id}").json()
        if operation["progress"] >= wanted:
            return operation
    raise AssertionError(f"{operation} has not come to {wanted} percent")


def test_an_operation_shows_its_progress_and_can_be_cancelled(api: Api, name: str) -> None:
    api.make_vm(f"slow-{name}")
    accepted = api.post(f"/v1/vms/slow-{name}/start")
    assert accepted.status_code == 202
    operation = wait_progress(api, accepted.json()["id"], 42)
    assert (operation["state"], operation["message"]) == ("running", "being slow")
    assert operation["id"] in [
        o["id"] for o in api.get("/v1/operations", params={"state": "running"}).json()["items"]
    ]
    assert api.post(f"/v1/operations/{operation['id']}/cancel").status_code == 202
    ended = api.finish(accepted)
    assert (ended["state"], ended["error"]["code"]) == ("cancelled", "operation-cancelled")
    assert api.get(f"/v1/vms/slow-{name}").json()["status"]["state"] == "defined"
    again = api.post(f"/v1/operations/{operation['id']}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "operation-finished")


def test_one_operation_at_a_time_on_a_vm(api: Api, name: str) -> None:
    api.make_vm(f"slow-{name}")
    accepted = api.post(f"/v1/vms/slow-{name}/start")
    for method, path in (("POST", "/start"), ("DELETE", "")):
        reply = api.request(method, f"/v1/vms/slow-{name}{path}", headers={"If-Match": "*"})
        assert (reply.status_code, reply.json()["code"]) == (409, "busy")
        assert accepted.json()["id"] in reply.json()["remedy"]
    api.post(f"/v1/operations/{accepted.json()['id']}/cancel")
    assert api.finish(accepted)["state"] == "cancelled"


def test_the_plug_can_be_pulled_while_a_shutdown_waits(api: Api, name: str) -> None:
    vm = f"stubborn-{name}"
    api.make_vm(vm)
    api.act(vm, "start")
    shutdown = api.post(f"/v1/vms/{vm}/shutdown", json={"timeout_s": 60})
    assert api.post(f"/v1/vms/{vm}/reset").json()["code"] == "busy"
    assert api.act(vm, "stop")["state"] == "done"
    api.post(f"/v1/operations/{shutdown.json()['id']}/cancel")
    assert api.finish(shutdown)["state"] == "cancelled"


@pytest.mark.parametrize(("kind", "code"), [("refusing", "vmm-start-failed"), ("faulty", "internal")])
def test_an_operation_that_fails_says_why(api: Api, name: str, kind: str, code: str) -> None:
    api.make_vm(f"{kind}-{name}")
    operation = api.act(f"{kind}-{name}", "start")
    assert (operation["state"], operation["error"]["code"]) == ("failed", code)
    assert operation["error"]["remedy"]
    assert find_events(api, f"vm/{kind}-{name}") == [
        ("vm.create", "done"),
        ("vm.start", "started"),
        ("vm.start", "failed"),
    ]


def test_every_change_makes_an_event_that_says_who(api: Api, name: str) -> None:
    api.make_vm(name)
    api.act(name, "start")
    api.act(name, "stop")
    api.put(f"/v1/vms/{name}", json={"spec": {"name": name, "cpus": 3}}, headers={"If-Match": "*"})
    api.delete(f"/v1/vms/{name}", headers={"If-Match": "*"})
    assert find_events(api, f"vm/{name}") == [
        ("vm.create", "done"),
        ("vm.start", "started"),
        ("vm.started", "done"),
        ("vm.start", "done"),
        ("vm.stop", "started"),
        ("vm.stopped", "done"),
        ("vm.stop", "done"),
        ("vm.update", "done"),
        ("vm.delete", "done"),
    ]
    created = next(e for e in api.get("/v1/events").json()["items"] if e["object"] == f"vm/{name}")
    assert created["actor"].startswith("user:")


def test_operations_are_listed_newest_first_in_pages(api: Api, name: str) -> None:
    api.make_vm(name)
    ids = [api.act(name, action)["id"] for action in ("start", "pause", "resume", "stop")]
    page = api.get("/v1/operations", params={"limit": 3}).json()
    assert [operation["id"] for operation in page["items"]] == ids[:0:-1]
    following = api.get("/v1/operations", params={"limit": 1, "after": page["after"]}).json()
    assert following["items"][0]["id"] == ids[0]
    assert api.get("/v1/operations/0").json()["code"] == "operation-not-found"


def test_the_history_is_trimmed_and_a_stream_tells_of_the_gap() -> None:
    with start_service("[history]\nevents = 100\noperations = 10\n") as service, service.connect() as api:
        api.make_vm("a")
        for _ in range(22):  # three events each
            api.act("a", "start")
            api.act("a", "stop")
        assert len(api.get("/v1/operations").json()["items"]) == 10
        listed = api.get("/v1/events", params={"limit": 1000}).json()
        assert listed["oldest"] > 1
        assert 100 <= len(listed["items"]) <= 110
        with api.stream("GET", "/v1/events/stream", headers={"Last-Event-ID": "1"}) as stream:
            events = read_events(stream)
            assert next(events) == {"oldest": listed["oldest"]}
            assert next(events)["id"] == listed["oldest"]


def test_a_stream_goes_on_where_it_broke_off(api: Api, name: str) -> None:
    with api.stream("GET", "/v1/events/stream") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = read_events(stream)
        api.make_vm(name)
        first = next(events)
    assert (first["object"], first["action"]) == (f"vm/{name}", "vm.create")
    api.act(name, "start")  # while nobody listens
    with api.stream("GET", "/v1/events/stream", headers={"Last-Event-ID": str(first["id"])}) as stream:
        events = read_events(stream)
        missed = [next(events) for _ in range(3)]
    assert [event["id"] for event in missed] == [first["id"] + 1, first["id"] + 2, first["id"] + 3]
    assert {event["object"] for event in missed} == {f"vm/{name}"}


@pytest.mark.parametrize("last", ["-1", "x", "9" * 20, "1.5"])
def test_a_last_event_id_that_is_no_number_is_refused(api: Api, last: str) -> None:
    reply = api.get("/v1/events/stream", headers={"Last-Event-ID": last})
    assert (reply.status_code, reply.json()["field"]) == (422, "Last-Event-ID")
