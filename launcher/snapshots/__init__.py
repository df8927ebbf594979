"""What `fglaunch snapshots` can do, one file each, found by its name."""
