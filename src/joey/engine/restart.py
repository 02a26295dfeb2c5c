"""What the restart policy and the timeouts of a spec mean: pure functions that `joey.engine.lifecycle` asks.

Restarts are Docker's (docs.docker.com/engine/containers/start-containers-automatically): the first after 100 ms, each
of the next after twice the time, at most a minute; a run of ten seconds starts that afresh.
"""

from __future__ import annotations

import math

import msgspec

from joey.model.errors import Invalid
from joey.model.spec import HealthCheck, Restart, SandboxSpec
from joey.model.views import Exit

FIRST_SECONDS = 0.1
LONGEST_SECONDS = 60.0
GOOD_SECONDS = 10.0
"""A run this long was a good one: the next restart is the first of a row again."""


def pause(tries: int) -> float:
    """Seconds before a restart, when `tries` came before it in a row."""
    return min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(tries, 32))


def wanted(restart: Restart, exit: Exit, tries: int) -> bool:
    """Whether a run that ended like this is followed by another, when `tries` restarts came in a row before."""
    if restart.policy == "on-failure":
        return exit.code != 0 and (restart.max_retries is None or tries < restart.max_retries)
    return restart.policy != "no"


def check(spec: SandboxSpec) -> None:
    """Raises Invalid naming the field, for what decoding cannot refuse: restart, timeouts and health of a spec."""
    check_restart(spec.restart, remove=spec.remove)
    check_seconds("timeout", spec.timeout)
    check_seconds("idle_timeout", spec.idle_timeout)
    if spec.health is not None:
        _check_health(spec.health)


def check_restart(restart: Restart, *, remove: bool) -> None:
    """Raises Invalid. remove: whether the sandbox goes when its run ends."""
    if remove and restart.policy != "no":
        raise Invalid(
            "restart", f"{restart.policy} and removal at the end exclude each other", "leave out one of the two"
        )
    if restart.max_retries is not None and restart.policy != "on-failure":
        raise Invalid("restart.max_retries", f"counts only with on-failure, not with {restart.policy}", "leave it out")
    if restart.max_retries is not None and restart.max_retries < 1:
        raise Invalid("restart.max_retries", f"{restart.max_retries} is below 1", "leave it out for no limit")


def check_seconds(field: str, seconds: float | None) -> None:
    """Raises Invalid for what is no length of time."""
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise Invalid(field, f"{seconds} is not a number of seconds above 0", "give null for none")


def with_health(spec: SandboxSpec, image: HealthCheck | None, *, least: float) -> SandboxSpec:
    """A spec that says nothing of health with the check of its image, not more often than every `least` seconds."""
    if spec.health is not None or image is None:
        return spec
    check = msgspec.structs.replace(
        image, interval=max(image.interval, least), start_interval=max(image.start_interval, least),
        timeout=max(image.timeout, least), start_period=max(image.start_period, 0.0), retries=max(image.retries, 1),
    )  # fmt: skip
    return msgspec.structs.replace(spec, health=check)


def _check_health(health: HealthCheck) -> None:
    given = [name for name in ("command", "http", "tcp") if getattr(health, name) not in ((), "", None)]
    if len(given) != 1:
        raise Invalid("health", f"{' and '.join(given) or 'nothing'} given", "give one of command, http and tcp")
    if health.tcp is not None and not 0 < health.tcp < 65536:
        raise Invalid("health.tcp", f"{health.tcp} is not a port", "1 to 65535")
    if health.http:
        http_target(health.http)
    for name in ("interval", "timeout", "start_interval"):
        check_seconds(f"health.{name}", getattr(health, name))
    if not (math.isfinite(health.start_period) and health.start_period >= 0):
        raise Invalid("health.start_period", f"{health.start_period} is not a number of seconds", "0 for none")
    if health.retries < 1:
        raise Invalid("health.retries", f"{health.retries} is below 1", "1 for unhealthy at the first failure")


def http_target(url: str) -> tuple[str, int, str]:
    """`http://127.0.0.1:8080/x?y` → (host, port, "/x?y"). Raises Invalid for what is not the sandbox's loopback."""
    remedy = "as in http://127.0.0.1:8080/health"
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    host, bracket, port = place.rpartition("]") if place.startswith("[") else place.partition(":")
    host, port = (host[1:], port.removeprefix(":")) if bracket == "]" else (host, port)
    if scheme != "http" or not url.isascii() or any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise Invalid("health.http", f"{url!r} is not an http URL", remedy)
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise Invalid("health.http", f"{host!r} is not the sandbox's own loopback", remedy)
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise Invalid("health.http", f"{port!r} is not a port", remedy)
    return "127.0.0.1" if host == "localhost" else host, int(port or 80), f"{slash or '/'}{path}".partition("#")[0]
