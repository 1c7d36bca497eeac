"""The thin VMM: processors, memory, interrupts and the channel, straight over KVM's ioctls."""
