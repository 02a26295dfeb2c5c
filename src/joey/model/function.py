"""What a function is: code, how it is called, and how many may run. Values and their checks; nothing touches a host.

Field names follow AWS Lambda's and Function Compute's where both have the thing (memory and disk are bytes, times
seconds). Decode untrusted JSON with `joey.model.codec.decode(FunctionSpec, data)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from msgspec import field

from joey.model.errors import Invalid
from joey.model.network import NetworkSpec, check_mode
from joey.model.units import MIB
from joey.model.value import Value
from joey.model.volumes import VolumeMount

LATEST = "$LATEST"
"""The version that can still be changed."""
REGION, ACCOUNT = "us-east-1", "000000000000"
"""What functions, and clients of other systems' APIs, find in names (ARNs): there is only one of each."""
MAX_TIMEOUT = 86_400.0
MIN_MEMORY = 16 * MIB
MAX_CONCURRENCY = 1000
MAX_LAYERS = 16
MAX_ENV = 64 << 10
"""Characters of env and secrets together."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", re.ASCII)
_VERSION = re.compile(r"\$LATEST|[1-9][0-9]{0,17}", re.ASCII)
_ALIAS = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9][A-Za-z0-9_-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_METHOD = re.compile(r"[A-Z]{1,20}", re.ASCII)
_RUNTIME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)

Kind = Literal["event", "wsgi", "asgi", "http", "runtime-api"]
PYTHON_KINDS: tuple[Kind, ...] = ("event", "wsgi", "asgi")


class AsyncConfig(Value, frozen=True, kw_only=True):
    """How asynchronous invocations are retried, and who hears of their end.

    max_retries: attempts after the first. max_age: seconds after which one that waits is given up. on_success,
    on_failure: "function:NAME[:QUALIFIER]" that is invoked with a record of it, "queue:NAME" that keeps the record
    until somebody reads it (a dead letter), or "" for nobody.
    """

    max_retries: int = 2
    max_age: float = 6 * 3600.0
    on_success: str = ""
    on_failure: str = ""

    def __post_init__(self) -> None:
        _range("max_retries", self.max_retries, 0, 8)
        _range("max_age", self.max_age, 1, 7 * 86_400)
        for name in ("on_success", "on_failure"):
            if value := getattr(self, name):
                prefix, _, target = value.partition(":")
                if prefix not in ("function", "queue"):
                    raise Invalid(name, f"{value!r} is no destination", "function:NAME[:QUALIFIER], or queue:NAME")
                check_name(target, name) if prefix == "queue" else split_ref(target, name)


class FunctionSpec(Value, frozen=True, kw_only=True):
    """A function as its owner describes it; a version is one that is never changed again.

    kind          what the code is. event: `handler(event, context)` in Python. wsgi, asgi: an application in Python.
                  http: a program that serves HTTP on $PORT. runtime-api: one that asks AWS Lambda's Runtime API
    runtime       a label for people and other APIs ("python3.12", "provided.al2023", "nodejs20.x"); decides nothing
    handler       "module.function" of the Python kinds, dots or slashes in the module; passed on as _HANDLER otherwise
    event_format  json: the handler gets what json.loads makes of the event, and its result is JSON (AWS Lambda).
                  bytes: it gets bytes; text and bytes are the answer as they are (Function Compute)
    image         what it runs in, "" for the node's default; python: the interpreter in it (3.8 or later)
    command       of http and runtime-api: the program; () the image's own, or /code/bootstrap if there is code
    port          of http
    code, layers  digests in the code store: at /code, and one over the other at /opt
    env, secrets  {name: value}; secrets are shown to nobody but the code
    timeout       seconds an invocation may take; then its instance is killed
    memory, cpus, pids, disk   limits of an instance, as of a sandbox (disk: None, what memory allows)
    concurrency   invocations an instance takes at once (Python: threads, or one event loop for `async def` and asgi)
    reserved      instances that no other function may take from it, and as many as it may have; 0: none may run
    provisioned   instances that are kept whatever the load; max_instances: at most so many
    keep_alive    seconds an idle instance stays, None: learned from how it is used
    modules       imported before there is a request, once for all instances (see `template`)
    initializer   "module.function" called once in an instance before its first invocation, for initializer_timeout at
                  most (which also holds for the imports); pre_stop: before its end
    template      start instances as forks of a warm process where that is safe
    network       as of a sandbox; none by default
    async_        "async" in JSON: of asynchronous invocations
    """

    name: str
    kind: Kind = "event"
    runtime: str = "python3"
    handler: str = ""
    event_format: Literal["json", "bytes"] = "json"
    image: str = ""
    python: str = "python3"
    command: tuple[str, ...] = ()
    port: int = 8080
    code: str = ""
    layers: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    timeout: float = 3.0
    memory: int = 128 * MIB
    cpus: float = 1.0
    pids: int = 256
    disk: int | None = None
    concurrency: int = 1
    reserved: int | None = None
    provisioned: int = 0
    max_instances: int | None = None
    keep_alive: float | None = None
    modules: tuple[str, ...] = ()
    initializer: str = ""
    initializer_timeout: float = 10.0
    pre_stop: str = ""
    pre_stop_timeout: float = 2.0
    template: bool = True
    network: str | NetworkSpec = "none"
    volumes: tuple[VolumeMount, ...] = ()
    user: str = ""
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    async_: AsyncConfig = field(default_factory=AsyncConfig, name="async")

    def __post_init__(self) -> None:
        check_name(self.name)
        self._check_code()
        self._check_env()
        self._check_limits()
        self._check_scaling()
        if isinstance(self.network, str) and self.network != "none":
            check_mode("network", self.network)

    def _check_code(self) -> None:
        python = self.kind in PYTHON_KINDS
        if not _RUNTIME.fullmatch(self.runtime):
            raise Invalid("runtime", f"{self.runtime!r} is not a name for a runtime", "such as python3.12")
        if python and not self.handler:
            raise Invalid("handler", f"is required for kind {self.kind}", "module.function")
        for name in ("handler", "initializer", "pre_stop"):
            _text(name, getattr(self, name), 512)
        if not python and (self.initializer or self.pre_stop or self.modules):
            name = next(name for name in ("initializer", "pre_stop", "modules") if getattr(self, name))
            raise Invalid(name, f"is for Python's kinds ({', '.join(PYTHON_KINDS)}), not for {self.kind}")
        if python and self.command:
            raise Invalid("command", f"is for http and runtime-api, not for {self.kind}", "set python, or another kind")
        for name in self.modules:
            if not _MODULE.fullmatch(name):
                raise Invalid("modules", f"{name!r} is not a module's name", "such as numpy or os.path")
        if len(self.layers) > MAX_LAYERS:
            raise Invalid("layers", f"{len(self.layers)} of them, at most {MAX_LAYERS}")
        for where, digest in (("code", self.code), *(("layers", layer) for layer in self.layers)):
            if (digest or where == "layers") and not _DIGEST.fullmatch(digest):
                raise Invalid(where, f"{digest!r} is not a digest", "sha256: and 64 hexadecimal digits")

    def _check_env(self) -> None:
        for where in ("env", "secrets"):
            for name in getattr(self, where):
                if not _ENV.fullmatch(name):
                    raise Invalid(where, f"{name!r} is not a name for a variable", "letters, digits and _")
        both = self.env.keys() & self.secrets.keys()
        if both:
            raise Invalid("secrets", f"{min(both)!r} is in env too", "one of them")
        if (size := sum(len(a) + len(b) for part in (self.env, self.secrets) for a, b in part.items())) > MAX_ENV:
            raise Invalid("env", f"{size} characters with secrets, at most {MAX_ENV}", "keep what is long in the code")

    def _check_limits(self) -> None:
        _range("timeout", self.timeout, 0.001, MAX_TIMEOUT)
        _range("initializer_timeout", self.initializer_timeout, 0.001, MAX_TIMEOUT)
        _range("pre_stop_timeout", self.pre_stop_timeout, 0, 900)
        _range("memory", self.memory, MIN_MEMORY, 1 << 50)
        _range("cpus", self.cpus, 0.01, 1 << 16)
        _range("pids", self.pids, 4, 4 << 20)
        _range("port", self.port, 1, 65_535)
        if self.disk is not None:
            _range("disk", self.disk, MIB, 1 << 50)

    def _check_scaling(self) -> None:
        _range("concurrency", self.concurrency, 1, MAX_CONCURRENCY)
        _range("provisioned", self.provisioned, 0, 100_000)
        if self.reserved is not None:
            _range("reserved", self.reserved, 0, 100_000)
        if self.max_instances is not None:
            _range("max_instances", self.max_instances, 0, 100_000)
        for name in ("reserved", "max_instances"):
            most = getattr(self, name)
            if most is not None and self.provisioned > most:
                raise Invalid("provisioned", f"{self.provisioned} are more than {name} allows ({most})")
        if self.keep_alive is not None:
            _range("keep_alive", self.keep_alive, 0, 7 * 86_400)


class Version(Value, frozen=True, kw_only=True):
    """A function as it was at one time. version: "$LATEST" or a number; revision: another one with every change.

    created: seconds since the epoch. code_sha256: of the code, base64, as AWS Lambda shows it ("" without code).
    """

    spec: FunctionSpec
    version: str = LATEST
    revision: str = ""
    created: float = 0.0
    description: str = ""
    code_sha256: str = ""
    code_size: int = 0

    @property
    def name(self) -> str:
        """The function's."""
        return self.spec.name


class Alias(Value, frozen=True, kw_only=True):
    """A version's other name. weights: {another version: its share of invocations, 0 to 1}; `version` has the rest."""

    name: str
    version: str
    weights: dict[str, float] = field(default_factory=dict)
    description: str = ""

    def __post_init__(self) -> None:
        check_alias(self.name)
        check_version(self.version)
        for version, share in self.weights.items():
            check_version(version, "weights")
            if version == self.version:
                raise Invalid("weights", f"version {version} is the alias's own: it has what is left")
            _range("weights", share, 0, 1)
        if sum(self.weights.values()) > 1 + 1e-9:
            raise Invalid("weights", "are more than 1 together")


class Trigger(Value, frozen=True, kw_only=True):
    """What invokes a function by itself.

    timer: `schedule` is "cron(…)" or "rate(…)", `payload` the event (JSON). url: an address of its own, any method;
    auth "key": only with an API key of its owner, "none": anybody who reaches the daemon. methods: those a url takes,
    () for any. qualifier: which version.
    """

    name: str
    kind: Literal["timer", "url"]
    schedule: str = ""
    payload: str = ""
    auth: Literal["key", "none"] = "key"
    methods: tuple[str, ...] = ()
    qualifier: str = ""
    enabled: bool = True
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.methods and self.kind != "url":
            raise Invalid("methods", "are for URLs")
        for method in self.methods:
            if not _METHOD.fullmatch(method):
                raise Invalid("methods", f"{method[:40]!r} is no method", "such as GET")
        if (self.kind == "timer") != bool(self.schedule):
            raise Invalid("schedule", "is what a timer needs, and nothing else takes", "rate(5 minutes)")
        if self.payload and self.kind != "timer":
            raise Invalid("payload", "is for timers")
        _text("payload", self.payload, 256 << 10)
        if self.qualifier:
            check_qualifier(self.qualifier)


def check_name(name: str, where: str = "name") -> None:
    """Raises Invalid for what cannot be a function's (or trigger's) name."""
    if not _NAME.fullmatch(name):
        raise Invalid(where, f"{name[:200]!r} is not a name", "1 to 128 letters, digits, _ and -")


def check_version(version: str, where: str = "version") -> None:
    """Raises Invalid for what cannot be a version: $LATEST or a number from 1."""
    if not _VERSION.fullmatch(version):
        raise Invalid(where, f"{version[:200]!r} is not a version", "$LATEST or a number")


def check_alias(name: str, where: str = "name") -> None:
    """Raises Invalid for what cannot be an alias's name: it is no number, else it would be a version."""
    if not _ALIAS.fullmatch(name):
        raise Invalid(where, f"{name[:200]!r} is not a name for an alias", "as a function's, but not a number")


def check_qualifier(qualifier: str, where: str = "qualifier") -> None:
    """Raises Invalid for what is neither a version nor an alias."""
    if not _VERSION.fullmatch(qualifier) and not _ALIAS.fullmatch(qualifier):
        raise Invalid(where, f"{qualifier[:200]!r} is neither a version nor an alias")


def split_ref(ref: str, where: str = "function") -> tuple[str, str]:
    """(name, qualifier or "") of "name" or "name:qualifier". Raises Invalid."""
    name, colon, qualifier = ref.partition(":")
    check_name(name, where)
    if colon:
        check_qualifier(qualifier, where)
    return name, qualifier


def shown(env: Mapping[str, str]) -> dict[str, str]:
    """Secrets as they are shown: their names."""
    return dict.fromkeys(env, "***")


def _range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also for what is not a number
        raise Invalid(name, f"is {_number(value)}, not from {_number(low)} to {_number(high)}")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def _text(name: str, value: str, longest: int) -> None:
    if len(value) > longest:
        raise Invalid(name, f"{len(value)} characters, at most {longest}")
