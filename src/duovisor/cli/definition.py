"""A VM's definition as text and back, and single settings of it: pure functions."""

from __future__ import annotations

from typing import Any

from duovisor.spec.errors import SpecError

Document = dict[str, Any]

AUTOSTART = "autostart"
# setting the one takes the place of the other
_ALIASES = {"memory": "memory_mib", "memory_max": "memory_max_mib", "memory_limit": "memory_limit_mib"}


def render_definition(document: Document) -> str:
    """A definition as YAML, keys in the specification's order."""
    import yaml

    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def parse_definition(text: str) -> Document:
    """The definition that a text means. Raises ``SpecError``."""
    from duovisor.spec.loading import parse_document

    document = parse_document(text, ".yaml")
    if not isinstance(document, dict):
        raise SpecError("this is no definition", remedy="it needs the keys spec and autostart")
    return document


def apply_setting(document: Document, setting: str) -> None:
    """Change one value: ``KEY=VALUE``, KEY as in ``memory``, ``disks.0.cache`` or ``autostart.order``.

    Raises ``SpecError`` for a setting without a value and a path that leads nowhere; whether key and value
    mean something is for the service to say.
    """
    path, separator, value = setting.partition("=")
    if not separator or not path:
        raise SpecError(f"{setting!r} is not KEY=VALUE", remedy="write for example memory=1G")
    keys = path.split(".")
    place: Any = document if keys[0] == AUTOSTART else document["spec"]
    for key in keys[:-1]:
        place = _step(place, key, path)
    last = keys[-1]
    if isinstance(place, dict):
        place.pop(_ALIASES.get(last, ""), None)
        place[last] = parse_value(value)
    elif isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = parse_value(value)
    else:
        raise _no_such(path)


def parse_value(text: str) -> Any:
    """A value as YAML reads it; an empty one is none. Raises ``SpecError``."""
    from duovisor.spec.loading import parse_document

    return parse_document(text, ".yaml") if text else None


def _step(place: Any, key: str, path: str) -> Any:
    if isinstance(place, dict) and key in place:
        return place[key]
    if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
        return place[int(key)]
    raise _no_such(path)


def _no_such(path: str) -> SpecError:
    return SpecError(
        f"there is no {path!r} in the definition", remedy="duovisor vm show NAME --json shows all"
    )
