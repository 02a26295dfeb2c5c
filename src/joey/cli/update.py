"""`joey update`: limits, labels, timeouts and the restart policy of sandboxes that exist, running or not."""

from joey.cli import life, network_options, request
from joey.cli.change import each
from joey.cli.options import UsageError
from joey.cli.values import labels
from joey.client.transport import quote

_LIMITS = (
    "--memory", "--memory-swap", "--memory-reservation", "--cpus", "--cpu-quota", "--cpu-period", "--cpu-shares",
    "--cpuset-cpus", "--cpuset-mems", "--pids-limit",
)  # fmt: skip
_TIMES = ("--restart", "--on-timeout")


def _picked(options, names):
    return tuple(option for option in options if not isinstance(option, str) and set(option[0].split()) & set(names))


def body(values):
    """The body of PATCH. Raises UsageError."""
    found = {}
    resources = request.resources(values)
    if resources:
        found["resources"] = resources
    if "label" in values or "label_rm" in values:
        found["labels"] = labels(values.get("label", ()), ()) | dict.fromkeys(values.get("label_rm", ()))
    for name in ("timeout", "idle_timeout"):
        if name in values:
            found[name] = None if values[name] == "none" else life.seconds(values[name], "--" + name.replace("_", "-"))
    if "restart" in values:
        found["restart"] = life.restart(values["restart"])
    if "on_timeout" in values:
        found["on_timeout"] = life.on_timeout(values["on_timeout"])
    change = network_options.policy(values)
    if change:
        found["network"] = change
    if not found:
        raise UsageError("nothing to change", "joey update --help")
    return found


def update(values, arguments):
    """Change each."""
    change = body(values)

    def act(connection, ref):
        connection.call("PATCH", f"/v1/sandboxes/{quote(ref)}", change)
        return ref

    return each(arguments, act)


COMMANDS = {
    "update": {
        "usage": "[OPTIONS] SANDBOX…",
        "summary": "Change limits, network policy, labels and timeouts of sandboxes while they run",
        "arguments": (1, None),
        "options": (
            *_picked(request.OPTIONS, _LIMITS),
            ("-l --label", "NAME[=VALUE]…", "Set a label"),
            ("--label-rm", "NAME…", "Take a label away"),
            *_picked(life.OPTIONS, _TIMES),
            *network_options.POLICY,
            ("--timeout", "TIME", "End it so long from now; none for no end"),
            ("--idle-timeout", "TIME", "End it when so long nobody has wanted anything of it; none for never"),
        ),
        "refused": {
            **dict.fromkeys(("--blkio-weight", "--cpu-rt-period", "--cpu-rt-runtime", "--kernel-memory"), ""),
        },
        "run": update,
    },
}
