"""Guest images: folders with a kernel, an initramfs and disks, and the recipe that builds the probe guest."""
