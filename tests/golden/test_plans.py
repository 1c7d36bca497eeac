"""Launch plans, compared with golden files: both designs, three QEMUs, KVM and TCG.

Each file holds the plan for QEMU 7.2 on TCG, then the lines in which the others differ from it.
``DUOVISOR_REGENERATE=1 pytest tests/golden`` writes them anew; read the difference before you commit it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from click.core import ParameterSource
from tests.golden.cases import CASES, Case, build_case_spec, parse_arguments
from tests.golden.rendering import render_difference, render_plan, replace_folder
from tests.recorded.abilities import VERSIONS, load_abilities

from duovisor.cli.run import command
from duovisor.hypervisor.build import build_launch_plan
from duovisor.hypervisor.errors import PlanError
from duovisor.hypervisor.memory import list_module_files
from duovisor.hypervisor.plan import LaunchPlan, VmmPaths
from duovisor.hypervisor.qemu import devices
from duovisor.hypervisor.qemu.console import CONSOLE_LOG
from duovisor.sandbox import SandboxTools
from duovisor.spec import vm
from duovisor.spec.model import SpecModel
from duovisor.spec.vm import Accelerator, Design, VirtualMachineSpec

FOLDER = Path(__file__).parent / "plans"
REGENERATE = "DUOVISOR_REGENERATE"
TOOLS = [SandboxTools(Path("/usr/bin/bwrap"), Path("/usr/bin/setpriv"), as_root) for as_root in (True, False)]
KVM_GIDS = (104,)
ACCELERATORS = (Accelerator.TCG, Accelerator.KVM)
NOT_IN_A_PLAN = {
    "as_json": "how the outcome is printed",
    "design": "each case is planned in both",
    "kernel_from_disk": "which kernel that is, is found before there is a plan",
}

both_designs = pytest.mark.parametrize("design", list(Design), ids=str)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def build_plan(spec: VirtualMachineSpec, version: str, accelerator: Accelerator) -> LaunchPlan:
    memory_file = Path("/run/duovisor/memory") / spec.name
    paths = VmmPaths(
        qemu=Path("/usr/bin/qemu-system-x86_64"),
        memory_file=memory_file,
        uefi_code=Path("/usr/share/OVMF/OVMF_CODE_4M.fd"),
        uefi_vars=Path("/run/duovisor/vms") / spec.name / "uefi-vars.fd",
        block_devices=frozenset({"/dev/block-device"}),
        module_files=list_module_files(memory_file) if spec.memory_room_mib > spec.memory_mib else (),
    )
    return build_launch_plan(spec, load_abilities(version), accelerator, paths, KVM_GIDS)


def render_variants(spec: VirtualMachineSpec) -> list[str]:
    """The plan of the first variant, and how each other one differs from it."""
    variants = [(version, accelerator) for accelerator in ACCELERATORS for version in VERSIONS]
    try:
        base = render_plan(build_plan(spec, *variants[0]), TOOLS)
    except PlanError as error:
        return [f"refused: {error}"]
    lines = [f"QEMU {variants[0][0]}, {variants[0][1]}", "", *base]
    for version, accelerator in variants[1:]:
        other = render_plan(build_plan(spec, version, accelerator), TOOLS)
        lines += ["", f"QEMU {version}, {accelerator}: differs in", *render_difference(base, other)]
    return lines


@each_case
@both_designs
def test_plan_is_the_golden_one(case: Case, design: Design, tmp_path: Path) -> None:
    text = replace_folder(render_variants(build_case_spec(case, tmp_path, design)), tmp_path, "STATE")
    golden = FOLDER / f"{case.name}.{design}.txt"
    if os.environ.get(REGENERATE):
        golden.write_text(text)
    assert text == golden.read_text(), f"{REGENERATE}=1 writes the golden files anew"


def test_no_golden_file_is_left_over() -> None:
    wanted = {f"{case.name}.{design}.txt" for case in CASES for design in Design}
    assert {path.name for path in FOLDER.iterdir()} == wanted


def find_models() -> dict[str, type[SpecModel]]:
    found = {name: value for name, value in vars(vm).items() if isinstance(value, type)}
    models = {n: v for n, v in found.items() if issubclass(v, SpecModel)}
    return {n: v for n, v in models.items() if not any(v in w.__mro__[1:] for w in models.values())}


def find_used_fields(model: SpecModel) -> set[str]:
    """``Model.field`` for each field, at any depth, that differs from its default."""
    used = set()
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if value == field.get_default():
            continue
        used.add(f"{type(model).__name__}.{name}")
        for child in value if isinstance(value, tuple) else (value,):
            used |= find_used_fields(child) if isinstance(child, SpecModel) else set()
    return used


def test_every_field_of_the_specification_is_in_a_golden_file(tmp_path: Path) -> None:
    used = set()
    for case in CASES:
        for design in Design:
            used |= find_used_fields(build_case_spec(case, tmp_path, design))
    fields = {f"{name}.{field}" for name, model in find_models().items() for field in model.model_fields}
    assert len(fields) > 20
    # of a driver of one's own no plan can know the type; the rest was found before there is a plan
    seeds = {field for field in fields if field.startswith("CloudInitSpec.")}
    assert fields - used == {
        "DeviceSpec.options", "DiskSpec.volume", "DiskSpec.cloud_init", "CdromSpec.volume",
        "KernelSpec.disk", "KernelSpec.found_arguments",
    } | seeds  # fmt: skip


def test_every_option_of_run_is_in_a_golden_file(tmp_path: Path) -> None:
    given = set()
    for case in CASES:
        with parse_arguments(case, tmp_path) as context:
            given |= {
                str(parameter.name)
                for parameter in command.params
                if context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
            }
    options = {str(parameter.name) for parameter in command.params}
    assert options - given == set(NOT_IN_A_PLAN)


@each_case
@both_designs
def test_every_descriptor_is_named_where_it_belongs(case: Case, design: Design, tmp_path: Path) -> None:
    if case.refused_inside:
        design = Design.MICROKERNELIZED
    spec = build_case_spec(case, tmp_path, design)
    plan = build_plan(spec, "7.2", Accelerator.TCG)
    assert set(plan.channels) <= set(plan.sockets)
    names = (*plan.sockets, *plan.taps, CONSOLE_LOG)
    numbers = {name: 900 + index for index, name in enumerate(names)}
    resolved = " ".join(plan.resolve_argv(numbers))
    for name, number in numbers.items():
        assert resolved.count(f"={number}") == 1, name


def test_what_the_user_wrote_is_never_taken_for_a_descriptor(tmp_path: Path) -> None:
    """``@qmp@`` on a kernel's command line and ``@disk0@`` in a file's name stay as they are."""
    texts = {"kernel": "@qmp@", "file": "@disk0@"}
    for case in CASES:
        if case.name in texts:
            plan = build_plan(build_case_spec(case, tmp_path, Design.MONOLITHIC), "7.2", Accelerator.TCG)
            resolved = plan.resolve_argv(dict.fromkeys((*plan.sockets, "disk0"), 900))
            assert any(texts[case.name] in argument for argument in resolved)


def test_a_vmm_knows_of_no_disk_driver_and_no_key(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "drivers")
    plan = build_plan(build_case_spec(case, tmp_path, Design.MICROKERNELIZED), "7.2", Accelerator.TCG)
    assert plan.sandbox is not None
    everything = " ".join(plan.argv) + repr(plan.sandbox)
    assert "secret" not in everything
    assert "mine" not in everything


def build_own_spec(design: Design) -> VirtualMachineSpec:
    device = {"driver": "/srv/mine.py", "options": {"colour": "red"}}
    return VirtualMachineSpec.model_validate({"name": "own", "design": design, "devices": [device]})


@pytest.mark.parametrize(("number", "model"), devices.MODELS.items())
def test_a_driver_of_ones_own_gets_the_model_of_its_type(number: int, model: str) -> None:
    paths = VmmPaths(Path("/usr/bin/qemu"), Path("/memory"), device_types=(number,))
    spec = build_own_spec(Design.MICROKERNELIZED)
    plan = build_launch_plan(spec, load_abilities("7.2"), Accelerator.TCG, paths)
    assert any(argument.startswith(f"{model},id=device0,") for argument in plan.argv)
    assert "mine" not in " ".join(plan.argv)  # the VMM knows of no driver
    assert plan.channels == ("device0",)


@pytest.mark.parametrize(
    ("design", "number", "complaint"),
    [
        (Design.MONOLITHIC, 4, "a VMM of the monolithic design has only QEMU's own drivers"),
        (Design.MICROKERNELIZED, 2, "QEMU lends no driver outside a device of type 2"),
        (Design.MICROKERNELIZED, 63, r"it does so for 4 \(rng\), 34 \(i2c\), 41 \(gpio\)"),
    ],
)
def test_a_driver_that_nothing_carries_is_refused(design: Design, number: int, complaint: str) -> None:
    paths = VmmPaths(Path("/usr/bin/qemu"), Path("/memory"), device_types=(number,))
    with pytest.raises(PlanError) as refused:
        build_launch_plan(build_own_spec(design), load_abilities("7.2"), Accelerator.TCG, paths)
    assert re.search(complaint, str(refused.value))
