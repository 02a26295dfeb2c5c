"""Snapshots, commits and forks of a sandbox's files: what is asked for and what is told of them."""

from __future__ import annotations

import msgspec

from joey.model.value import Value


class SnapshotBody(Value, frozen=True, kw_only=True):
    """A snapshot to take. name: a name and tag without a registry; "" for one that is made up. pause: hold everything
    still while files are copied; without it a file that is being written may be kept half-written.
    """

    name: str = ""
    pause: bool = True


class CommitBody(Value, frozen=True, kw_only=True):
    """An image to make (`docker commit`). name: may name a registry. changes: lines of a Dockerfile (CMD, ENTRYPOINT,
    ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR). message, author: kept in the image.
    """

    name: str = ""
    changes: tuple[str, ...] = ()
    message: str = ""
    author: str = ""
    pause: bool = True


class ForkBody(Value, frozen=True, kw_only=True):
    """New sandboxes on the same files. count: 1 to 10,000. pause: as of a snapshot."""

    count: int = 1
    pause: bool = True


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """An image made of a sandbox.

    name: by which new sandboxes are made of it. id: the image's digest. size: bytes of what the sandbox has changed;
    image_size: with all it lies on. entries: names in it. owner: "" the administrator's, else an API key's id. seconds:
    taking it took, of which the sandbox stood still for `paused`; 0 where it is only listed.
    """

    name: str
    id: str
    created: str
    size: int
    image_size: int
    entries: int = 0
    owner: str = ""
    seconds: float = 0.0
    paused: float = 0.0


class FileChange(msgspec.Struct, frozen=True):
    """kind: A (added), C (changed) or D (deleted). path: absolute, inside."""

    kind: str
    path: str
