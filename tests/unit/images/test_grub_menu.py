"""Menus of GRUB: as update-grub writes them, as we do, and as nobody should."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duovisor.controlling.images.grub import build_menu
from duovisor.controlling.images.grub_menu import MenuEntry, parse_menu, split_words

# what grub-mkconfig 2.06 writes, shortened
DEBIAN = r"""
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="DEFAULT"
fi
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}
### BEGIN /etc/grub.d/10_linux ###
function gfxmode {
	set gfxpayload="${1}"
}
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux $menuentry_id_option 'gnulinux-simple-0f2e' {
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root 0f2e
	echo	'Loading Linux 6.1.0-40-cloud-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-40-cloud-amd64 root=UUID=0f2e ro console=tty0 "quiet and loud" $extra
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.1.0-40-cloud-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-0f2e' {
	menuentry 'Debian GNU/Linux, with Linux 6.1.0-39-cloud-amd64' {
		linux	/boot/vmlinuz-6.1.0-39-cloud-amd64 root=UUID=0f2e ro
		initrd	/boot/initrd.img-6.1.0-39-cloud-amd64
	}
}
menuentry "Another" {
	linux16 /boot/other root=/dev/vda1 BOOT_IMAGE=x
	initrd16 /boot/early.img /boot/other.img
}
"""
FIRST = MenuEntry(
    "/boot/vmlinuz-6.1.0-40-cloud-amd64",
    ("/boot/initrd.img-6.1.0-40-cloud-amd64",),
    'root=UUID=0f2e ro console=tty0 "quiet and loud"',
)


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        ("0", FIRST),
        ("2", MenuEntry("/boot/other", ("/boot/early.img", "/boot/other.img"), "root=/dev/vda1")),
        ("${saved_entry}", FIRST),
        ("1", None),  # a submenu starts nothing
        ("7", None),
    ],
)
def test_a_menu_of_debian(default: str, expected: MenuEntry | None) -> None:
    assert parse_menu(DEBIAN.replace("DEFAULT", default)) == expected


def test_the_menu_of_a_fresh_image() -> None:
    root = UUID(int=7)
    assert parse_menu(build_menu(root, "console=ttyS0 quiet")) == MenuEntry(
        "/vmlinuz", ("/initrd.img",), f"root=UUID={root} ro console=ttyS0 quiet"
    )


@pytest.mark.parametrize("text", ["", "}", "menuentry x {", "menuentry x {\nlinux\ninitrd\n}", "{\n" * 1000])
def test_what_starts_nothing(text: str) -> None:
    assert parse_menu(text) is None


def test_quotes() -> None:
    assert split_words(r"""linux  /a\ b 'c d' "e \"f\"" g'h'i """) == [
        "linux",
        "/a b",
        "c d",
        r"e \"f\"",
        "ghi",
    ]


@given(st.text(alphabet=st.sampled_from("menuentry linuxinitrd{}'\"\\\n\t =0$"), max_size=300))
def test_no_menu_is_trusted(text: str) -> None:
    found = parse_menu(text)
    assert found is None or (found.kernel and found.initrd)
