"""The guest agent (qemu-ga): a program in the guest that answers over a virtio-serial port."""
