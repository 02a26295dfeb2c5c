"""`joey daemon`: this process becomes the engine."""

import os
import sys

from joey.cli.spawn import command
from joey.cli.values import decimal


def daemon(values, arguments):
    """Does not return: the engine's own program takes over."""
    argv = command()
    for place in values.get("listen", ()):
        argv += ["--listen", place]
    for name in ("socket_group", "tls_cert", "tls_key", "proxy", "proxy_domain", "docker_socket"):
        if name in values:
            path = name.startswith(("tls", "docker")) and not os.path.isabs(values[name])
            argv += ["--" + name.replace("_", "-"), os.path.abspath(values[name]) if path else values[name]]
    if "idle_exit" in values:
        decimal(values["idle_exit"], "--idle-exit")
        argv += ["--idle-exit", values["idle_exit"]]
    sys.stdout.flush()
    os.execv(argv[0], argv)


COMMANDS = {
    "daemon": {
        "usage": "[OPTIONS]",
        "summary": "Run the engine in the foreground",
        "text": (
            "Other commands start one in the background when they need it. SIGTERM ends it; sandboxes go\n"
            "on. It serves $JOEY_HOME/run/api.sock (mode 0600: who can open it administers) and what\n"
            "--listen names. By TCP every request needs an API key (joey keys create); an address that\n"
            "other machines can reach is refused as long as there is no key. The same settings, and a few\n"
            'more, stand in $JOEY_HOME/daemon.toml: listen = ["…"], socket_group, tls_cert, tls_key,\n'
            "idle_exit, max_requests, max_requests_per_key, max_connections, max_sandboxes (0: as many as\n"
            "fit), memory_overcommit (256: memory limits may promise so many times the machine's memory and\n"
            "swap), max_starts (20000 in flight), header_timeout, body_timeout, keys_pull (registries that\n"
            'keys may have asked for images: ["docker.io"]); or in the environment as\n'
            "JOEY_LISTEN (several places with commas) and so on.\n"
            "Options go before the environment, that before the file."
        ),
        "arguments": (0, 0),
        "options": (
            ("--listen", "unix:PATH|HOST:PORT…", "Serve this too"),
            ("--socket-group", "GROUP", "Who is in it may use the unix sockets (mode 0660), and so administers"),
            ("--tls-cert", "FILE", "Certificate chain (PEM): TCP is TLS then"),
            ("--tls-key", "FILE", "Its private key (PEM)"),
            ("--proxy", "HOST:PORT|auto|off", "Where ports of sandboxes are reached by HTTP: joey url"),
            ("--proxy-domain", "DOMAIN", "Their hosts are PORT-ID.DOMAIN instead of PORT-ID.localhost:PORT"),
            ("--docker-socket", "PATH", "Serve the Docker API there: docs/docker.md"),
            ("--idle-exit", "SECONDS", "End after so long without a sandbox and without a request"),
        ),
        "run": daemon,
    }
}
