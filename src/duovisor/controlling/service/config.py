"""``duovisord.toml``: what an administrator can choose about the service."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from duovisor.controlling.service.errors import ServiceConfigError
from duovisor.spec.loading import describe_validation_error

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = Path("/etc/duovisor/duovisord.toml")


def _check_address(address: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_address(address))
    except ValueError as error:
        raise ValueError(f"{address!r} is not an IP address; write for example 127.0.0.1 or ::1") from error


class ConfigModel(BaseModel):
    """Frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HttpsConfig(ConfigModel):
    """Where to listen for HTTPS, and with which certificate (PEM files). There is no default address."""

    address: Annotated[str, AfterValidator(_check_address)]
    port: int = Field(default=8443, ge=0, le=65535)  # 0: any free one, for tests
    certificate: Path
    key: Path


class HistoryConfig(ConfigModel):
    """How much is kept of what has happened."""

    events: int = Field(default=10_000, ge=100, le=1_000_000)
    operations: int = Field(default=1_000, ge=10, le=100_000)


class ServiceConfig(ConfigModel):
    """Everything that the file can say; an empty file is a good one."""

    group: str = Field(default="duovisor", min_length=1)
    https: HttpsConfig | None = None
    history: HistoryConfig = HistoryConfig()


def build_config(document: Mapping[str, object]) -> ServiceConfig:
    """Check what the file says. Raises ``ServiceConfigError``."""
    try:
        return ServiceConfig.model_validate(dict(document))
    except ValidationError as error:
        raise ServiceConfigError(describe_validation_error(error)) from error


def load_config(path: Path | None) -> ServiceConfig:
    """Read the configuration; without a path, the default file if it exists.

    Raises ``ServiceConfigError``, also for a private key that others may read.
    """
    if path is None:
        if not DEFAULT_FILE.exists():
            return ServiceConfig()
        path = DEFAULT_FILE
    try:
        config = build_config(tomllib.loads(path.read_text()))
    except OSError as error:
        raise ServiceConfigError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ServiceConfigError(f"{path} is not TOML: {error}") from error
    except ServiceConfigError as error:
        raise ServiceConfigError(f"{path}: {error.message}") from error
    if config.https is not None:
        _check_key(config.https.key)
    return config


def _check_key(key: Path) -> None:
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise ServiceConfigError(f"cannot read the private key {key}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o007:
        raise ServiceConfigError(
            f"everybody on this host may read the private key {key}", remedy=f"chmod o= {key}"
        )
