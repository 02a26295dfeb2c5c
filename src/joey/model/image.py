"""What an image is: read-only directories of the host and the configuration of what runs in them.

Names follow the OCI image specification (config.md); where the layers come from is the business of joey.images.
"""

from __future__ import annotations

from msgspec import field

from joey.model.spec import HealthCheck
from joey.model.value import Value


class Layer(Value, frozen=True):
    """A directory of the host that sandboxes see read-only, attached once in the launcher as /layers/`id`.

    id      safe as a file name, and another one whenever `source` is another directory, even under the same path
    source  absolute path on the host
    """

    id: str
    source: str


class Bind(Value, frozen=True):
    """An attached layer shown at `target` (absolute, inside), beside the overlay: for what is too big to copy.

    Always nosuid and nodev, and never id-mapped: inside, its files belong to nobody, and root inside reads what the
    whole world may read, no more. `target` exists in the overlay's layers.
    """

    layer: Layer
    target: str
    read_only: bool = True


class Image(Value, frozen=True, kw_only=True):
    """A root file system and how programs run in it unless told otherwise.

    name          as the user gave it
    layers        (n >= 1,) lowest first; lower directories of the overlay, id-mapped into the sandbox
    binds         (m,) in mounting order
    env           {name: value}
    entrypoint, argv   together the default command; a given argv replaces `argv` only (config.md, Entrypoint and Cmd)
    cwd           absolute, "" for /
    user          as in Process.user, "" for root
    stop_signal   a name such as SIGTERM, "" for the spec's
    health        as the image's author wants it to be looked after, None for not
    ports         "80/tcp": what listens, for people (ExposedPorts)
    volumes       absolute paths of directories that its sandboxes have, empty ones if need be (Volumes)
    """

    name: str
    layers: tuple[Layer, ...]
    binds: tuple[Bind, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    stop_signal: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    health: HealthCheck | None = None
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()

    @property
    def attached(self) -> tuple[Layer, ...]:
        """Every layer that must be attached before a sandbox of this image starts, each once."""
        return tuple({layer.id: layer for layer in (*self.layers, *(bind.layer for bind in self.binds))}.values())


class Identity(Value, frozen=True, kw_only=True):
    """Who a process is inside: ids as the sandbox sees them, 0 to 65535.

    groups: supplementary ones, sorted. home: absolute. name: "" when the ids have no entry in /etc/passwd.
    """

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"
    name: str = ""


DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of an image that says none (as Docker's)."""
