"""Documents: kinds, versions, upgrades, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from duovisor.controlling.store.documents import DocumentKind
from duovisor.controlling.store.errors import DocumentError, DocumentTooNewError


class Pet(BaseModel):
    """Version 3: ``legs`` came with 2, ``nickname`` was called ``alias`` before 3."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    legs: int
    nickname: str = ""


def _add_legs(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "legs": 4}


def _rename_alias(body: dict[str, Any]) -> dict[str, Any]:
    return {("nickname" if name == "alias" else name): item for name, item in body.items()}


PETS = DocumentKind("pet", Pet, version=3, upgraders={1: _add_legs, 2: _rename_alias})


def test_a_document_says_its_kind_and_version() -> None:
    value = PETS.encode(Pet(name="Zoë", legs=4))
    assert json.loads(value) == {"kind": "pet", "version": 3, "name": "Zoë", "legs": 4, "nickname": ""}
    assert PETS.decode(value, key="/pets/1") == Pet(name="Zoë", legs=4)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'{"kind":"pet","version":1,"name":"a"}', Pet(name="a", legs=4)),
        (b'{"kind":"pet","version":1,"name":"a","alias":"b"}', Pet(name="a", legs=4, nickname="b")),
        (b'{"kind":"pet","version":2,"name":"a","legs":3,"alias":"b"}', Pet(name="a", legs=3, nickname="b")),
    ],
)
def test_older_versions_are_brought_forward_step_by_step(value: bytes, expected: Pet) -> None:
    assert PETS.decode(value, key="/pets/1") == expected


def test_a_newer_version_is_refused() -> None:
    with pytest.raises(DocumentTooNewError, match=r"/pets/1 is a pet of version 4; .* up to 3") as raised:
        PETS.decode(b'{"kind":"pet","version":4,"name":"a","tail":true}', key="/pets/1")
    assert raised.value.code == "document-too-new"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "does not hold JSON"),
        (b"\xff", "does not hold JSON"),
        (b"[]", "not an object"),
        (b"{}", "kind None, not 'pet'"),
        (b'{"kind":"vm","version":1}', "kind 'vm', not 'pet'"),
        (b'{"kind":"pet"}', "version None"),
        (b'{"kind":"pet","version":0}', "version 0"),
        (b'{"kind":"pet","version":true}', "version True"),
        (b'{"kind":"pet","version":"3"}', "version '3'"),
        (b'{"kind":"pet","version":3,"name":"a"}', "not a valid pet: legs: Field required"),
        (b'{"kind":"pet","version":3,"name":"a","legs":4,"x":1}', "not a valid pet: x: Extra inputs"),
    ],
)
def test_what_is_not_such_a_document_is_refused(value: bytes, message: str) -> None:
    with pytest.raises(DocumentError, match=message) as raised:
        PETS.decode(value, key="/pets/1")
    assert raised.value.code == "document-invalid"
    assert str(raised.value).startswith("/pets/1 ")


@pytest.mark.parametrize(
    "steps", [{}, {1: _add_legs}, {2: _rename_alias}, {1: _add_legs, 2: _add_legs, 3: _add_legs}]
)
def test_a_kind_needs_every_step(steps: dict[int, Any]) -> None:
    with pytest.raises(ValueError, match="needs a step from each before"):
        DocumentKind("pet", Pet, version=3, upgraders=steps)


def test_kind_and_version_are_not_for_the_model() -> None:
    class Clash(BaseModel):
        version: int

    with pytest.raises(ValueError, match="a field of clash cannot be called version"):
        DocumentKind("clash", Clash)
