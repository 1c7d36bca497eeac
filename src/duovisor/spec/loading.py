"""Reads a specification from a TOML, YAML or JSON file, and says in one line what is wrong with it."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from duovisor.spec.errors import SpecError, SpecFileError
from duovisor.spec.vm import VirtualMachineSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_SPEC_BYTES = 1 << 20
MAX_FAULTS = 5  # shown in the one line that says what is wrong


def parse_document(text: str, suffix: str) -> Any:
    """Parse the text of a file with the given suffix (``.toml``, ``.yaml``, ``.yml``, ``.json``).

    Raises ``SpecFileError``.
    """
    try:
        match suffix.lower():
            case ".toml":
                return tomllib.loads(text)
            case ".json":
                return json.loads(text)
            case ".yaml" | ".yml":
                return _parse_yaml(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4,300 digits
        raise SpecFileError(f"not valid {suffix[1:].upper()}: {' '.join(str(error).split())}") from error
    raise SpecFileError(
        f"cannot tell the format from the suffix {suffix!r}", remedy="name it .toml, .yaml or .json"
    )


def _parse_yaml(text: str) -> Any:
    """Parse YAML without aliases: a few lines of them can stand for more than any memory holds."""
    import yaml  # only a specification file needs it

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not allowed in a specification")
            return super().compose_node(parent, index)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError) as error:
        # the last three: how PyYAML meets scalars such as "!!bool nonsense"
        raise ValueError(str(error)) from error


def load_document(path: Path) -> dict[str, Any]:
    """Read a file into a mapping. Raises ``SpecFileError``."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise SpecFileError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_SPEC_BYTES:
        raise SpecFileError(f"{path} is larger than 1 MiB", remedy="is it really a specification?")
    try:
        document = parse_document(raw.decode(), path.suffix)
    except UnicodeDecodeError as error:
        raise SpecFileError(f"{path} is not text in UTF-8") from error
    except SpecFileError as error:
        raise SpecFileError(f"{path}: {error.message}", remedy=error.remedy) from error
    if not isinstance(document, dict):
        raise SpecFileError(f"{path} holds no mapping", remedy="it needs keys such as name and memory")
    return document


def build_spec(document: Mapping[str, Any]) -> VirtualMachineSpec:
    """Check a mapping and return the specification it means. Raises ``SpecError`` naming field and value."""
    try:
        return VirtualMachineSpec.model_validate(dict(document))
    except ValidationError as error:
        raise SpecError(describe_validation_error(error)) from error


def describe_validation_error(error: ValidationError) -> str:
    """What is wrong, one clause a fault: ``cpus: 0 is … ; unknown field 'disks.0.pth'``."""
    clauses = []
    for fault in error.errors()[:MAX_FAULTS]:
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            clauses.append(f"unknown field {shorten(repr(where))}")
            continue
        message = shorten(fault["msg"].removeprefix("Value error, "), 200)
        message = message[:1].lower() + message[1:]
        given = fault["input"]
        shows_value = isinstance(given, str | int | float) and repr(given) not in message
        value = f" (got {shorten(repr(given))})" if shows_value else ""
        clauses.append(f"{where}: {message}{value}" if where else f"{message}{value}")
    if error.error_count() > MAX_FAULTS:
        clauses.append(f"and {error.error_count() - MAX_FAULTS} more faults")
    return "; ".join(clauses)


def shorten(text: str, width: int = 60) -> str:
    """Cut a long text in its middle."""
    return text if len(text) <= width else f"{text[: width // 2]}…{text[-width // 4 :]}"
