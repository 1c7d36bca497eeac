"""What a person or a program talks to: the QMP monitor, the serial console, virtio-serial ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.hypervisor.qemu.pci import SERIAL_PORTS_SLOT, at

if TYPE_CHECKING:
    from duovisor.spec.vm import VirtualMachineSpec

QMP_SOCKET = "qmp"
CONSOLE_SOCKET = "console"
CONSOLE_LOG = "console-log"
CONSOLE_LOG_SET = 1


def build_monitor() -> list[str]:
    """The QMP monitor; ``-S`` leaves the processors stopped until QMP says ``cont``."""
    return ["-chardev", _socket(QMP_SOCKET), "-mon", f"chardev={QMP_SOCKET},mode=control", "-S"]


def build_console() -> list[str]:
    """The guest's first serial port (16550A, ttyS0); QEMU itself logs what it prints, whoever listens.

    The log is a descriptor that QEMU inherits, so that a sandbox needs no path to it; QEMU takes from a set
    only one that is open as it would open the file itself, here for writing only (monitor/fds.c).
    """
    log = f"logfile=/dev/fdset/{CONSOLE_LOG_SET},logappend=on"
    return [
        "-add-fd", f"fd=@{CONSOLE_LOG}@,set={CONSOLE_LOG_SET}",
        "-chardev", f"{_socket(CONSOLE_SOCKET)},{log}",
        "-serial", f"chardev:{CONSOLE_SOCKET}",
    ]  # fmt: skip


def build_ports(spec: VirtualMachineSpec) -> list[str]:
    """The virtio-serial ports: those that the specification names, and the guest agent's."""
    if not spec.all_ports:
        return []
    arguments = ["-device", f"virtio-serial-pci,id=ports,max_ports=31,{at(SERIAL_PORTS_SLOT)}"]
    for index, port in enumerate(spec.all_ports):
        name = port_socket(index)
        arguments += ["-chardev", _socket(name)]
        arguments += ["-device", f"virtserialport,bus=ports.0,nr={index + 1},chardev={name},name={port}"]
    return arguments


def port_socket(index: int) -> str:
    """The name of the socket of virtio-serial port ``index``."""
    return f"port{index}"


def _socket(name: str) -> str:
    return f"socket,id={name},fd=@{name}@,server=on,wait=off"
