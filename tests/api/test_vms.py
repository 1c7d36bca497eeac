"""Virtual machines over REST: their whole life, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.api.running import Api, RunningService


def test_a_vm_lives_a_whole_life(api: Api, name: str) -> None:
    made = api.make_vm(name, cpus=2, memory_mib=256)
    assert made.headers["location"] == f"/v1/vms/{name}"
    assert api.act(name, "start")["state"] == "done"
    assert api.get(f"/v1/vms/{name}").json()["status"]["state"] == "running"
    assert api.get(f"/v1/vms/{name}/anatomy").json()["processes"][0]["layer"] == "controlling"
    assert [d["device"] for d in api.get("/v1/drivers").json()["items"] if d["vm"] == name] == ["disk0"]
    for action in ("pause", "resume", "reset", "shutdown"):
        assert api.act(name, action)["state"] == "done"
    etag = api.get(f"/v1/vms/{name}").headers["etag"]
    renamed = api.post(f"/v1/vms/{name}/rename", json={"name": name + "-b"}, headers={"If-Match": etag})
    assert renamed.json()["record"]["name"] == name + "-b"
    gone = api.delete(f"/v1/vms/{name}-b", headers={"If-Match": renamed.headers["etag"]})
    assert gone.status_code == 204
    assert api.get(f"/v1/vms/{name}-b").json()["code"] == "vm-not-found"


def test_a_running_vm_is_switched(api: Api, name: str) -> None:
    api.make_vm(name)
    api.act(name, "start")
    before = api.get(f"/v1/vms/{name}").headers["etag"]
    operation = api.finish(api.post(f"/v1/vms/{name}/switch", json={"design": "microkernelized"}))
    assert (operation["state"], operation["action"]) == ("done", "vm.switch")
    result = operation["result"]
    assert (result["old_design"], result["new_design"]) == ("monolithic", "microkernelized")
    assert (result["pause_ms"], result["stream_bytes"], result["old_pid"]) == (18.2, 412 << 10, 100)
    vm = api.get(f"/v1/vms/{name}")
    assert vm.json()["record"]["spec"]["design"] == "microkernelized"
    assert vm.headers["etag"] != before
    again = api.finish(api.post(f"/v1/vms/{name}/switch", json={"design": "microkernelized"}))
    assert (again["state"], again["error"]["code"], again["result"]) == ("failed", "move-refused", None)
    updated = api.act(name, "update-vmm")
    assert (updated["action"], updated["result"]["new_version"]) == ("vm.update-vmm", "10.0.3")
    actions = [event["action"] for event in api.get("/v1/events", params={"limit": 1000}).json()["items"]]
    assert {"vm.switched", "vm.vmm-updated"} <= set(actions)


def test_devices_come_and_go(api: Api, name: str) -> None:
    api.make_vm(name)
    before = api.get(f"/v1/vms/{name}").headers["etag"]
    disk = {"disk": {"path": "/srv/a.raw"}}
    attached = api.finish(api.post(f"/v1/vms/{name}/attach-disk", json=disk))
    assert (attached["action"], attached["message"]) == ("vm.attach-disk", "disk0 attached")
    assert api.get(f"/v1/vms/{name}").headers["etag"] != before
    again = api.finish(api.post(f"/v1/vms/{name}/attach-disk", json=disk))
    assert (again["state"], again["error"]["code"]) == ("failed", "plug-refused")
    for path, wrong in (
        ("attach-disk", {}),
        ("attach-disk", {"disk": {"path": "/a", "slot": 99}}),
        ("attach-nic", {"nic": {"network": "no/name"}}),
        ("detach-disk", {"device": "nic0"}),
        ("detach-nic", {"device": "nic0", "timeout_s": 0}),
    ):
        reply = api.post(f"/v1/vms/{name}/{path}", json=wrong)
        assert (reply.status_code, reply.json()["code"]) == (422, "request-invalid"), wrong
    assert api.post("/v1/vms/none/attach-disk", json=disk).status_code == 404
    detached = api.finish(api.post(f"/v1/vms/{name}/detach-disk", json={"device": "disk0"}))
    assert detached["state"] == "done"
    gone = api.finish(api.post(f"/v1/vms/{name}/detach-disk", json={"device": "disk0"}))
    assert gone["error"]["code"] == "device-not-found"


def test_a_disk_is_limited(api: Api, name: str) -> None:
    api.make_vm(name)
    api.finish(api.post(f"/v1/vms/{name}/attach-disk", json={"disk": {"path": "/srv/a.raw"}}))
    limits = {"device": "disk0", "iops_limit": 500, "bandwidth_limit": "50M"}
    (disk,) = api.post(f"/v1/vms/{name}/limit-disk", json=limits).json()["record"]["spec"]["disks"]
    assert (disk["iops_limit"], disk["bandwidth_limit"]) == (500, 50 << 20)
    for wrong in (
        {},
        {"device": "nic0"},
        {"device": "disk0", "iops_limit": 0},
        {"device": "disk0", "bandwidth_limit": 9},
    ):
        reply = api.post(f"/v1/vms/{name}/limit-disk", json=wrong)
        assert (reply.status_code, reply.json()["code"]) == (422, "request-invalid"), wrong
    gone = api.post(f"/v1/vms/{name}/limit-disk", json={"device": "disk5"})
    assert (gone.status_code, gone.json()["code"]) == (404, "device-not-found")


def test_processors_are_added(api: Api, name: str) -> None:
    api.make_vm(name)
    place = f"/v1/vms/{name}/set-cpus"
    assert api.post(place, json={"cpus": 3}).json()["record"]["spec"]["cpus"] == 3
    for wrong in ({}, {"cpus": 0}, {"cpus": 256}, {"cpus": "many"}):
        reply = api.post(place, json=wrong)
        assert (reply.status_code, reply.json()["code"]) == (422, "request-invalid"), wrong


def test_memory_is_added(api: Api, name: str) -> None:
    api.make_vm(name)
    place = f"/v1/vms/{name}/set-memory"
    assert api.post(place, json={"memory_mib": "3G"}).json()["record"]["spec"]["memory_mib"] == 3072
    vm = api.post(place, json={"memory_mib": 4096}).json()
    assert (vm["record"]["spec"]["memory_mib"], vm["status"]["memory_note"]) == (4096, "")
    for wrong in ({}, {"memory_mib": 1}, {"memory_mib": "1.5K"}, {"memory": "3G"}):
        reply = api.post(place, json=wrong)
        assert (reply.status_code, reply.json()["code"]) == (422, "request-invalid"), wrong


def test_processors_and_memory_are_limited(api: Api, name: str) -> None:
    api.make_vm(name)
    place = f"/v1/vms/{name}/set-limits"
    api.post(place, json={"cpu_weight": 50, "memory_limit_mib": "3G"})
    spec = api.post(place, json={"cpu_limit": 1.5, "cpu_weight": None}).json()["record"]["spec"]
    assert (spec["cpu_weight"], spec["cpu_limit"], spec["memory_limit_mib"]) == (None, 1.5, 3072)
    for wrong in ({"cpu_weight": 0}, {"cpu_limit": "many"}, {"memory": 1}, {"memory_limit_mib": "1.5K"}):
        reply = api.post(place, json=wrong)
        assert (reply.status_code, reply.json()["code"]) == (422, "request-invalid"), wrong
    refused = api.post(place, json={"cpu_reservation": 2})
    assert (refused.status_code, refused.json()["code"]) == (422, "vm-change-refused")


def test_a_card_is_limited(api: Api, name: str) -> None:
    api.make_vm(name)
    api.finish(api.post(f"/v1/vms/{name}/attach-nic", json={"nic": {"bridge": "br0", "out_limit": "1M"}}))
    limits = {"device": "nic0", "in_limit": "50M"}
    (nic,) = api.post(f"/v1/vms/{name}/limit-nic", json=limits).json()["record"]["spec"]["nics"]
    assert (nic["in_limit"], nic["out_limit"]) == (50 << 20, None)
    for wrong in ({}, {"device": "disk0"}, {"device": "nic0", "in_limit": "9K"}):
        reply = api.post(f"/v1/vms/{name}/limit-nic", json=wrong)
        assert (reply.status_code, reply.json()["code"]) == (422, "request-invalid"), wrong
    gone = api.post(f"/v1/vms/{name}/limit-nic", json={"device": "nic5"})
    assert (gone.status_code, gone.json()["code"]) == (404, "device-not-found")


def test_what_is_not_switched(api: Api, name: str) -> None:
    api.make_vm(name)
    at_rest = api.finish(api.post(f"/v1/vms/{name}/switch", json={"design": "microkernelized"}))
    assert (at_rest["message"], at_rest["result"]) == ("microkernelized at its next start", None)
    refused = api.post(f"/v1/vms/{name}/update-vmm").json()
    assert (refused["code"], refused["remedy"]) == ("wrong-state", "it must be running")
    assert refused["message"] == f"cannot update the VMM of {name}: it is defined"
    api.act(name, "start")
    api.act(name, "pause")
    paused = api.post(f"/v1/vms/{name}/switch", json={"design": "monolithic"})
    assert (paused.status_code, paused.json()["code"]) == (409, "wrong-state")
    assert paused.json()["remedy"] == f"duovisor vm resume {name}"
    for wrong in ({}, {"design": "hybrid"}, {"design": "monolithic", "now": True}):
        reply = api.post(f"/v1/vms/{name}/switch", json=wrong)
        assert (reply.status_code, reply.json()["code"]) == (422, "request-invalid")
    assert api.post("/v1/vms/none/switch", json={"design": "monolithic"}).status_code == 404


@pytest.mark.parametrize(("how", "code"), [("restart", "same code"), ("update", "code aaa → bbb")])
def test_a_driver_is_replaced(api: Api, name: str, how: str, code: str) -> None:
    api.make_vm(name)
    assert api.post(f"/v1/drivers/{name}-not/disk0/{how}").json()["code"] == "vm-not-found"
    stopped = api.finish(api.post(f"/v1/drivers/{name}/disk0/{how}"))
    assert stopped["error"]["code"] == "wrong-state"
    api.act(name, "start")
    driver = next(d for d in api.get("/v1/drivers").json()["items"] if d["vm"] == name)
    assert (driver["duty"], driver["code"], driver["deaths"], driver["last_pause_ms"]) == (
        "active",
        "aaa",
        3,
        1.5,
    )
    done = api.finish(api.post(f"/v1/drivers/{name}/disk0/{how}"))
    assert (done["state"], done["message"]) == ("done", f"disk0: pid 100 → 200, {code}, paused 2.5 ms")
    missing = api.finish(api.post(f"/v1/drivers/{name}/disk7/{how}"))
    assert missing["error"]["code"] == "device-not-found"


def test_a_list_comes_in_pages(api: Api, name: str) -> None:
    names = [f"{name}-{index}" for index in range(5)]
    for each in names:
        api.make_vm(each)
    seen: list[str] = []
    after = None
    while True:
        page = api.get("/v1/vms", params={"limit": 2, **({"after": after} if after else {})}).json()
        assert len(page["items"]) <= 2
        seen += [vm["record"]["name"] for vm in page["items"]]
        if (after := page["after"]) is None:
            break
    assert [each for each in seen if each.startswith(name)] == names
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("limit", [0, 1001, -1, "many"])
def test_a_page_has_limits(api: Api, limit: object) -> None:
    reply = api.get("/v1/vms", params={"limit": str(limit)})
    assert (reply.status_code, reply.json()["field"]) == (422, "limit")


def test_a_change_needs_the_etag_of_what_was_seen(api: Api, name: str) -> None:
    etag = api.make_vm(name).headers["etag"]
    wanted = {"spec": {"name": name, "cpus": 4}}
    without = api.put(f"/v1/vms/{name}", json=wanted)
    assert (without.status_code, without.json()["code"]) == (428, "precondition-required")
    changed = api.put(f"/v1/vms/{name}", json=wanted, headers={"If-Match": etag})
    assert changed.json()["record"]["spec"]["cpus"] == 4
    stale = api.put(f"/v1/vms/{name}", json={"spec": {"name": name}}, headers={"If-Match": etag})
    assert (stale.status_code, stale.json()["code"]) == (412, "revision-conflict")
    assert api.get(f"/v1/vms/{name}").json() == changed.json()
    for path, method in ((f"/v1/vms/{name}", "DELETE"), (f"/v1/vms/{name}/rename", "POST")):
        body = {"name": "other"} if method == "POST" else None
        assert api.request(method, path, json=body, headers={"If-Match": etag}).status_code == 412
        assert api.request(method, path, json=body).status_code == 428
    assert api.get(f"/v1/vms/{name}").json() == changed.json()


@pytest.mark.parametrize("etag", ["7", 'W/"7"', '"7", "8"', '"x"', '""'])
def test_an_if_match_that_is_no_etag_of_ours_is_refused(api: Api, name: str, etag: str) -> None:
    api.make_vm(name)
    reply = api.delete(f"/v1/vms/{name}", headers={"If-Match": etag})
    assert (reply.status_code, reply.json()["field"]) == (422, "If-Match")


def test_a_star_matches_whatever_is_there(api: Api, name: str) -> None:
    api.make_vm(name)
    assert api.delete(f"/v1/vms/{name}", headers={"If-Match": "*"}).status_code == 204


def test_of_several_who_change_what_they_saw_one_wins(service: RunningService, api: Api, name: str) -> None:
    etag = api.make_vm(name).headers["etag"]

    def change(cpus: int) -> int:
        with service.connect() as client:
            body = {"spec": {"name": name, "cpus": cpus}}
            return client.put(f"/v1/vms/{name}", json=body, headers={"If-Match": etag}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(change, range(1, 9))) == [200] + [412] * 7


def test_of_several_who_define_the_same_name_one_wins(service: RunningService, name: str) -> None:
    def define(_: int) -> int:
        with service.connect() as client:
            return client.post("/v1/vms", json={"spec": {"name": name}}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(define, range(8))) == [201] + [409] * 7


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({"spec": {"name": "a", "colour": "red"}}, "spec.colour", "unknown field 'spec.colour'"),
        ({"spec": {"name": "a"}, "extra": 1}, "extra", "unknown field 'extra'"),
        ({"spec": {"name": "a/b"}}, "spec.name", "'a/b' is not a name"),
        ({"spec": {"name": "a" * 300}}, "spec.name", "300 characters long"),
        ({"spec": {"name": "a", "cpus": 0}}, "spec.cpus", "(got 0)"),
        ({"spec": {"name": "a", "disks": [{"pth": "x"}]}}, "spec.disks.0.pth", "unknown field"),
        ({"spec": {"name": "a", "disks": [{}]}}, "spec.disks.0", "path is missing"),
        ({}, "spec", "field required"),
        ([], "body", "valid dictionary"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(api: Api, body: object, field: str, said: str) -> None:
    before = api.get("/v1/vms", params={"limit": 1000}).json()
    reply = api.post("/v1/vms", json=body)
    assert (reply.status_code, reply.json()["code"]) == (422, "request-invalid")
    assert reply.json()["field"] == field
    assert said in reply.json()["message"]
    assert api.get("/v1/vms", params={"limit": 1000}).json() == before


def test_what_is_not_json_is_refused(api: Api) -> None:
    for body in (b"{", b"\xff\xfe", b"[" * 100_000, b""):
        reply = api.post("/v1/vms", content=body, headers={"Content-Type": "application/json"})
        assert (reply.status_code, reply.json()["code"]) == (422, "request-invalid")


def test_a_body_that_is_too_large_is_refused(api: Api) -> None:
    reply = api.post("/v1/vms", json={"spec": {"name": "x" * (2 << 20)}})
    assert (reply.status_code, reply.json()["code"]) == (413, "request-too-large")


def test_a_name_in_use_is_refused(api: Api, name: str) -> None:
    first = api.make_vm(name)
    assert api.post("/v1/vms", json={"spec": {"name": name, "cpus": 8}}).json()["code"] == "name-in-use"
    api.make_vm(name + "-b")
    rename = api.post(f"/v1/vms/{name}-b/rename", json={"name": name}, headers={"If-Match": "*"})
    assert (rename.status_code, rename.json()["code"]) == (409, "name-in-use")
    assert api.get(f"/v1/vms/{name}").json() == first.json()


def test_a_name_is_changed_only_by_renaming(api: Api, name: str) -> None:
    api.make_vm(name)
    reply = api.put(f"/v1/vms/{name}", json={"spec": {"name": "other"}}, headers={"If-Match": "*"})
    assert (reply.status_code, reply.json()["field"]) == (422, "spec.name")
    assert "rename" in reply.json()["remedy"]


@pytest.mark.parametrize("action", ["shutdown", "stop", "pause", "resume", "reset"])
def test_an_action_in_the_wrong_state_is_refused_and_starts_no_operation(
    api: Api, name: str, action: str
) -> None:
    before = api.make_vm(name).json()
    reply = api.post(f"/v1/vms/{name}/{action}")
    assert (reply.status_code, reply.json()["code"]) == (409, "wrong-state")
    assert reply.json()["remedy"].startswith("it must be ")
    assert api.get(f"/v1/vms/{name}").json() == before
    operations = api.get("/v1/operations", params={"limit": 1000}).json()["items"]
    assert [o for o in operations if o["object"] == f"vm/{name}"] == []


@pytest.mark.parametrize("action", ["start", "shutdown", "stop", "pause", "resume", "reset"])
def test_an_action_on_nothing_is_refused(api: Api, action: str) -> None:
    assert api.post(f"/v1/vms/nobody/{action}").json()["code"] == "vm-not-found"


def test_a_running_vm_is_not_deleted(api: Api, name: str) -> None:
    api.make_vm(name)
    api.act(name, "start")
    assert api.delete(f"/v1/vms/{name}", headers={"If-Match": "*"}).json()["code"] == "wrong-state"
    assert api.get(f"/v1/vms/{name}").status_code == 200


def test_a_path_or_method_that_is_not_there(api: Api) -> None:
    assert api.get("/v1/vmss").json()["code"] == "no-such-path"
    assert api.patch("/v1/vms").json()["code"] == "method-not-allowed"
    assert "GET" in api.patch("/v1/vms").headers["allow"]
