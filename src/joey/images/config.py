"""Which registries to talk to and how: `$JOEY_HOME/registries.toml`, all of it optional.

    parallel = 4                 # layers at a time
    timeout = 60                 # seconds without a byte until a connection counts as dead
    retries = 5                  # after the first try
    keep-layers = true           # keep compressed layers too: push and save give back the very same bytes

    [registry."docker.io"]
    mirrors = ["https://mirror.example.com", "http://10.0.0.5:5000"]   # asked first, in this order, for pulls

    [registry."10.0.0.5:5000"]
    insecure = true              # plain HTTP; loopback addresses need no such line
    [registry."registry.example.com"]
    ca = "/etc/ssl/example.pem"  # besides the machine's certificate authorities
    verify = true                # false: any certificate

Credentials are Docker's own: see joey.images.auth.
"""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from joey.images.reference import DEFAULT_REGISTRY
from joey.model.errors import Invalid

HUB = "registry-1.docker.io"
NAME = "registries.toml"


class RegistryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says of one registry."""

    mirrors: tuple[str, ...] = ()
    insecure: bool = False
    ca: str = ""
    verify: bool = True


class RegistriesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The file. timeout: seconds."""

    parallel: int = 4
    timeout: float = 60.0
    retries: int = 5
    keep_layers: bool = True
    registry: dict[str, RegistryConfig] = {}

    def of(self, registry: str) -> RegistryConfig:
        return self.registry.get(registry, RegistryConfig())


class Endpoint(msgspec.Struct, frozen=True):
    """Where requests go. base: `https://host[:port][/path]`. auth: key of its credentials. mirror: only for pulls."""

    base: str
    auth: str
    config: RegistryConfig = RegistryConfig()
    mirror: bool = False


def load(home: Path) -> RegistriesConfig:
    """The configuration of an instance; defaults without a file. Raises Invalid naming the file and the field."""
    path = home / NAME
    try:
        text = path.read_text()
    except FileNotFoundError:
        return RegistriesConfig()
    except (OSError, UnicodeError) as error:
        raise Invalid(str(path), f"cannot be read: {error}") from error
    try:
        found = msgspec.convert(tomllib.loads(text), RegistriesConfig)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise Invalid(str(path), str(error), "docs/images.md shows what may stand there") from error
    if not (1 <= found.parallel <= 64 and found.timeout > 0 and 0 <= found.retries <= 100):
        raise Invalid(str(path), "parallel is 1 to 64, timeout above 0, retries 0 to 100")
    return found


def endpoints(registry: str, config: RegistriesConfig, *, push: bool = False) -> tuple[Endpoint, ...]:
    """Where to ask for images of `registry`: mirrors first (pulls only), the registry itself last."""
    own = config.of(registry)
    found = []
    for mirror in () if push else own.mirrors:
        scheme, mark, rest = mirror.rstrip("/").partition("://")
        if not mark:
            scheme, rest = "", mirror.rstrip("/")
        host = rest.partition("/")[0]
        base = f"{scheme or _scheme(host, config.of(host))}://{rest}"
        found.append(Endpoint(base, host, config.of(host), mirror=True))
    host = HUB if registry == DEFAULT_REGISTRY else registry
    return (*found, Endpoint(f"{_scheme(host, own)}://{host}", registry, own))


def _scheme(host: str, config: RegistryConfig) -> str:
    """http where the configuration says so, and for loopback addresses unless it names a ca (as Docker does)."""
    return "http" if config.insecure or (is_loopback(host) and not config.ca and config.verify) else "https"


def is_loopback(host: str) -> bool:
    """Whether `host[:port]` is localhost or an address of 127.0.0.0/8 or ::1."""
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def ssl_context(config: RegistryConfig) -> Any:
    """An SSLContext, or True for the machine's default. Raises Invalid naming the file of certificates."""
    import ssl

    if not config.verify:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if not config.ca:
        return True
    try:
        context = ssl.create_default_context()
        context.load_verify_locations(config.ca)
    except (OSError, ssl.SSLError) as error:
        raise Invalid(f"{NAME}: ca", f"{config.ca}: {error}") from error
    return context
