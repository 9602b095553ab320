"""Files, disks, memory and processes of this machine, independent of models."""
