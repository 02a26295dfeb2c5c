"""What comes to a sandbox with time: --restart, --timeout, --health-… of `joey run`, in Docker's words where it has
them.
"""

from joey.cli.options import UsageError
from joey.cli.values import decimal, whole

OPTIONS = (
    "With time",
    ("--restart", "POLICY", "When it has ended: no, on-failure[:TRIES], always, unless-stopped"),
    ("--timeout", "TIME", "End it so long after its start, such as 90, 1.5h, 1h30m"),
    ("--idle-timeout", "TIME", "End it when so long nobody has wanted anything of it"),
    ("--on-timeout", "kill|pause", "What end means here (kill)"),
    ("--health-cmd", "COMMAND", "It is healthy if this succeeds in it, as a line of sh"),
    ("--health-http", "URL", "It is healthy if this answers, such as http://localhost:8080/ of its own"),
    ("--health-tcp", "PORT", "It is healthy if its loopback takes connections there"),
    ("--health-interval", "TIME", "Between checks (30s)"),
    ("--health-timeout", "TIME", "A check may take so long (30s)"),
    ("--health-retries", "NUMBER", "Failures in a row that make it unhealthy (3)"),
    ("--health-start-period", "TIME", "Failures of so long do not count (0s)"),
    ("--health-start-interval", "TIME", "Between checks until then (5s)"),
    ("--no-healthcheck", "", "Not the check that the image brings either"),
)  # fmt: skip
_CHECKS = ("health_cmd", "health_http", "health_tcp")
_TIMES = ("interval", "timeout", "start_period", "start_interval")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def add(values, body):
    """What these options say, into the body of POST /v1/sandboxes. Raises UsageError."""
    if "restart" in values:
        body["restart"] = restart(values["restart"])
    for name in ("timeout", "idle_timeout"):
        if name in values:
            body[name] = seconds(values[name], "--" + name.replace("_", "-"))
    if "on_timeout" in values:
        body["on_timeout"] = on_timeout(values["on_timeout"])
    health = _health(values)
    if health:
        body["health"] = health


def restart(text):
    """`on-failure:3` as a Restart."""
    policy, colon, tries = text.partition(":")
    if policy not in ("no", "on-failure", "always", "unless-stopped") or (colon and policy != "on-failure"):
        raise UsageError(f"--restart {text}: unknown", "no, on-failure[:TRIES], always or unless-stopped")
    found = {"policy": policy}
    if colon and (tries := whole(tries, "--restart", 0)):  # Docker's 0 is: without end
        found["max_retries"] = tries
    return found


def on_timeout(text):
    """kill or pause."""
    if text not in ("kill", "pause"):
        raise UsageError(f"--on-timeout: {text!r} is neither kill nor pause")
    return text


def seconds(text, option):
    """`90`, `1.5h`, `1h30m`, `500ms` in seconds."""
    if text and text.isascii() and text.replace(".", "", 1).isdigit():
        return decimal(text, option)
    total, digits, rest = 0.0, "", text.lower()
    while rest:
        if rest[0] in "0123456789.":
            digits, rest = digits + rest[0], rest[1:]
            continue
        unit = next((unit for unit in ("us", "ms", "s", "m", "h", "d") if rest.startswith(unit)), None)
        if unit is None or not digits:
            break
        total, digits, rest = total + decimal(digits, option) * _UNITS[unit], "", rest[len(unit) :]
    if rest or digits or not text:
        raise UsageError(f"{option}: {text!r} is not a length of time", "such as 90, 500ms, 1.5h or 1h30m")
    return total


def _health(values):
    given = [name for name in _CHECKS if name in values]
    others = [name for name in values if name.startswith("health_") and name not in _CHECKS]
    if len(given) > 1:
        names = " and ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{names}: there is one check for a sandbox")
    if values.get("no_healthcheck"):
        if given or others:
            raise UsageError(f"--no-healthcheck with --{(given or others)[0].replace('_', '-')}", "leave out one")
        return {"command": ["NONE"]}
    if not given:
        if others:
            raise UsageError(f"--{others[0].replace('_', '-')}: there is no check", "--health-cmd COMMAND")
        return {}
    found = {}
    if "health_cmd" in values:
        found["command"] = ["sh", "-c", values["health_cmd"]]
    if "health_http" in values:
        found["http"] = values["health_http"]
    if "health_tcp" in values:
        found["tcp"] = whole(values["health_tcp"], "--health-tcp", 1)
    for name in _TIMES:
        if "health_" + name in values:
            found[name] = seconds(values["health_" + name], "--health-" + name.replace("_", "-"))
    if "health_retries" in values:
        found["retries"] = whole(values["health_retries"], "--health-retries", 1)
    return found
