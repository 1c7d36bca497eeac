"""Every error of a specification through the real program: one line, the table's exit code, nothing made."""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING

import pytest
from tests.unit.cli.conftest import Outcome, Program, check_refusal

from duovisor.cli.exit_codes import EXIT_CODES, exit_code_of
from duovisor.cli.main import COMMANDS
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WRONG = 2


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--memory", "2X"), "memory_mib: '2X' is not a size; write for example 512M, 2G or 1.5G"),
        (("--memory", "-5"), "'-5' is not a size"),
        (("--memory", "1k"), "'1k' is not a whole number of MiB"),
        (("--cpus", "0"), "cpus: input should be greater than or equal to 1 (got 0)"),
        (("--name", "a" * 300), "name: the name is 300 characters long; 63 is the most"),
        (("--name", "a/b"), "name: 'a/b' is not a name: letters, digits"),
        (("--name", ".."), "name: '..' is not a name"),
        (("--name", ""), "name: a name must not be empty"),
        (("--disk", "/a.raw,cached=none"), "unknown field 'disks.0.cached'"),
        (("--disk", ""), "disks.0: path is missing: "),
        (("--disk", "/a,queues=x"), "disks.0.queues: "),
        (("--forward", "22"), "'22' is not a port forward; write for example 2222:22"),
        (("--firmware", "direct-kernel"), "firmware direct-kernel needs a kernel: add kernel.path"),
        (
            ("--kernel", "/k", "--firmware", "uefi"),
            "only with firmware direct-kernel, not uefi",
        ),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_wrong_options(
    duovisor: Program, run_here: Callable[..., Outcome], arguments: tuple[str, ...], said: str
) -> None:
    assert said in check_refusal(run_here("run", *arguments), WRONG)
    assert list(duovisor.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", "name = 'a'\nmemroy = '1G'\n", "unknown field 'memroy'"),
        ("a.toml", "name = ", "a.toml: not valid TOML"),
        ("a.toml", b"name = '\xff'", "a.toml is not text in UTF-8"),
        ("a.toml", "#" * (2 << 20), "a.toml is larger than 1 MiB"),
        ("a.yaml", "- a\n- b\n", "a.yaml holds no mapping"),
        ("a.yaml", "disks: text\n", "disks: 'text' is not a list"),
        ("a.json", '{"disks": [{"path": "a\\u0000b"}]}', "holds a zero byte"),
        ("a.conf", "name = 'a'", "cannot tell the format from the suffix '.conf'"),
    ],
    ids=["unknown field", "no TOML", "no UTF-8", "huge", "no mapping", "wrong kind", "zero byte", "format"],
)  # fmt: skip
def test_wrong_files(
    duovisor: Program, run_here: Callable[..., Outcome], name: str, content: str | bytes, said: str
) -> None:
    path = write(duovisor.folder, name, content)
    assert said in check_refusal(run_here("run", path), WRONG)
    assert list(duovisor.folder.iterdir()) == [path]


def test_missing_files(duovisor: Program) -> None:
    missing = duovisor.folder / "none.toml"
    said = duovisor.refuse("run", missing, exit_code=WRONG)
    assert said == f"error: cannot read {missing}: No such file or directory\n"
    assert "Is a directory" in duovisor.refuse("run", duovisor.folder, exit_code=WRONG)


@pytest.mark.parametrize("level", ["[{}]", "{{<<: [{}]}}"], ids=["aliases", "merge keys"])
def test_a_yaml_bomb_does_not_hang(duovisor: Program, level: str) -> None:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {level.format(', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, 12)]
    path = write(duovisor.folder, "bomb.yaml", "\n".join([*lines, "name: *a11"]))
    started = time.monotonic()
    assert "aliases (*name) are not allowed" in duovisor.refuse("run", path, exit_code=WRONG)
    assert time.monotonic() - started < 10


def test_what_is_not_there(duovisor: Program) -> None:
    assert "there is no image 'none'" in duovisor.refuse("run", "--image", "none", exit_code=3)
    assert "no VM named 'none' runs" in duovisor.refuse("anatomy", "none", exit_code=3)


@pytest.mark.parametrize(
    "arguments",
    [("run", "--cpus", "many"), ("run", "--design", "hybrid"), ("run", "--no-such"), ("no-such-command",)],
    ids=" ".join,
)
def test_what_click_refuses(duovisor: Program, arguments: tuple[str, ...]) -> None:
    outcome = duovisor.run(*arguments)
    assert (outcome.exit_code, outcome.output) == (2, "")
    assert "Error: " in outcome.errors
    assert "Traceback" not in outcome.errors


def test_debug_shows_the_traceback(duovisor: Program) -> None:
    outcome = duovisor.run("--debug", "run", "--memory", "2X")
    assert outcome.exit_code == 1
    assert "Traceback" in outcome.errors


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_help(duovisor: Program, command: tuple[str, ...]) -> None:
    outcome = duovisor.run(*command, "--help")
    assert (outcome.exit_code, outcome.errors) == (0, "")
    assert outcome.output.startswith("Usage: duovisor ")
    assert all(len(line) <= 92 for line in outcome.output.splitlines())


def test_a_wrong_option_through_the_real_program(duovisor: Program) -> None:
    said = duovisor.refuse("run", "--memory", "2X", exit_code=WRONG)
    assert said == "error: memory_mib: '2X' is not a size; write for example 512M, 2G or 1.5G\n"
    assert duovisor.run("run", "-h").output == duovisor.run("run", "--help").output


def test_version_and_completion(duovisor: Program) -> None:
    assert duovisor.run("--version").output.startswith("duovisor, version ")
    duovisor.environment["_DUOVISOR_COMPLETE"] = "bash_complete"
    duovisor.environment |= {"COMP_WORDS": "duovisor r", "COMP_CWORD": "1"}
    assert duovisor.run().output.strip() == "plain,run"


def test_anatomy_of_nothing(duovisor: Program) -> None:
    assert duovisor.run("anatomy").output == "no VM runs; start one with: duovisor run --image probe\n"
    assert duovisor.run("anatomy", "--json").output == "[]\n"


def find_errors(root: type[DuovisorError]) -> set[type[DuovisorError]]:
    return {root}.union(*(find_errors(child) for child in root.__subclasses__()))


LAYERS = (
    "spec.errors",
    "hardware.errors",
    "process",
    "hypervisor.errors",
    "hypervisor.memory",
    "controlling.errors",
    "controlling.images.errors",
)


def test_every_error_has_an_exit_code() -> None:
    modules = [importlib.import_module(f"duovisor.{layer}").__name__ for layer in LAYERS]
    codes = {error.code for error in find_errors(DuovisorError) if error.__module__ in modules}
    assert len(codes) > 20
    assert codes <= EXIT_CODES.keys()
    assert exit_code_of(DuovisorError("x")) == 1
