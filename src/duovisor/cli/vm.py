"""``duovisor vm``: virtual machines by name. Each command's module is imported when it is typed."""

from __future__ import annotations

import click

from duovisor.cli.lazy_group import LazyGroup

COMMANDS = {
    "list": ("vm_list:list_command", "List VMs."),
    "show": ("vm_list:show", "Show a VM: what is wanted of it and what it does."),
    "create": ("vm_define:create", "Define a VM."),
    "clone": ("vm_define:clone", "Copy a VM that does not run, with its volumes."),
    "cloud-init": ("vm_cloud_init:command", "Show or change what a guest is told at its first boot."),
    "rename": ("vm_define:rename", "Rename a VM that does not run."),
    "delete": ("vm_define:delete", "Forget a VM; its disks stay, or go with it."),
    "edit": ("vm_edit:edit", "Change a VM's definition."),
    "autostart": ("vm_edit:autostart", "Let a VM start with the host, or not."),
    "reset-nvram": ("vm_firmware:reset_nvram", "Forget UEFI variables: boot entries, keys."),
    "cdrom": ("vm_cdrom:command", "Put a medium into a CD-ROM drive, or take it out."),
    "guest": ("vm_guest:guest", "Show what a VM's guest tells: system, addresses."),
    "fsfreeze": ("vm_guest:fsfreeze", "Freeze guests' file systems for a while."),
    "fsthaw": ("vm_guest:fsthaw", "Thaw guests' file systems."),
    "start": ("vm_act:start", "Start VMs."),
    "pause": ("vm_act:pause", "Hold VMs' processors."),
    "resume": ("vm_act:resume", "Let paused VMs run on."),
    "reset": ("vm_act:reset", "Press VMs' reset buttons."),
    "shutdown": ("vm_act:shutdown", "Ask guests to shut down, and wait."),
    "stop": ("vm_act:stop", "Pull VMs' plugs; the guests are not asked."),
    "switch": ("vm_move:switch", "Give VMs the other design, under their running guests."),
    "update-vmm": ("vm_move:update_vmm", "Replace running VMs' VMMs by what is installed now."),
    "snapshot": ("vm_snapshot:command", "Save running VMs whole, and go back to where they were."),
    "attach-disk": ("vm_devices:attach_disk", "Give a VM a disk, under its running guest."),
    "limit-disk": ("vm_devices:limit_disk", "Limit what a VM's disk does in a second."),
    "set-cpus": ("vm_resources:set_cpus", "Give a VM more processors."),
    "set-memory": ("vm_resources:set_memory", "Give a VM more memory."),
    "set-limits": ("vm_resources:set_limits", "Limit what a VM uses of processors and memory."),
    "limit-nic": ("vm_devices:limit_nic", "Limit what a VM's NIC moves in a second."),
    "detach-disk": ("vm_devices:detach_disk", "Take a disk from a VM."),
    "attach-nic": ("vm_devices:attach_nic", "Give a VM a NIC, under its running guest."),
    "detach-nic": ("vm_devices:detach_nic", "Take a NIC from a VM."),
    "console": ("vm_console:console", "Attach to a VM's serial console; Ctrl-] leaves."),
    "screenshot": ("vm_screen:screenshot", "Save a picture of a VM's screen."),
    "vnc": ("vm_screen:vnc", "Show where a VM's screen can be looked at, once."),
    "log": ("vm_console:log", "Show what a VM's guest printed."),
    "anatomy": ("vm_anatomy:anatomy", "Show a VM's three layers: processes, drivers, host access."),
}


@click.command(cls=LazyGroup, table=COMMANDS)
def command() -> None:
    """Define, run and watch virtual machines."""
