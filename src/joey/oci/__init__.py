"""joey-oci: a command that Docker, Podman, containerd and CRI-O can use in place of runc (docs/oci.md).

Every call is a process of its own, so nothing here imports what starts slowly (msgspec, typing, re, json, enum,
subprocess, pathlib) unless the call needs it.
"""
