"""What is told of functions: answers of the API. Times are seconds since the epoch."""

from __future__ import annotations

from msgspec import field

from joey.model.function import Alias, AsyncConfig, FunctionSpec, Trigger
from joey.model.value import Value


class FunctionFigures(Value, frozen=True, kw_only=True):
    """Of one function since this engine began. errors, throttles: by type and reason. Durations in seconds: of
    invocations at an instance, of starts of instances, of waiting for a place; upper ends of histogram buckets.
    memory: bytes charged to its instances, None where nobody looked.
    """

    invocations: int = 0
    cold_starts: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    throttles: dict[str, int] = field(default_factory=dict)
    running: int = 0
    waiting: int = 0
    queued: int = 0
    instances: int = 0
    starting: int = 0
    duration_mean: float | None = None
    duration_p50: float | None = None
    duration_p99: float | None = None
    start_mean: float | None = None
    start_p99: float | None = None
    wait_p99: float | None = None
    memory: int | None = None


class VersionView(Value, frozen=True, kw_only=True):
    """A version; of its secrets only the names are shown."""

    function: str
    version: str
    revision: str
    created: float
    spec: FunctionSpec
    description: str = ""
    code_sha256: str = ""
    code_size: int = 0


class FunctionView(Value, frozen=True, kw_only=True):
    """A function. spec: of $LATEST. versions, aliases, triggers: names. urls: path of each function URL."""

    name: str
    owner: str
    created: float
    modified: float
    revision: str
    spec: FunctionSpec
    code_sha256: str = ""
    code_size: int = 0
    versions: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    urls: dict[str, str] = field(default_factory=dict)
    provisioned: dict[str, int] = field(default_factory=dict)
    figures: FunctionFigures = field(default_factory=FunctionFigures)


class InstanceView(Value, frozen=True, kw_only=True):
    """A sandbox that runs a version. running: invocations it does; idle: since when it has nothing to do."""

    id: str
    version: str
    started: float
    state: str
    running: int = 0
    served: int = 0
    idle: float | None = None
    memory: int | None = None


class TaskView(Value, frozen=True, kw_only=True):
    """An asynchronous invocation. state: queued, running, succeeded, failed, expired, stopped. due: when it is to be
    tried (again). error: type of the last failure. result: what the handler answered, or its failure as JSON; None if
    there is none (yet), or it was larger than 256 KiB. Kept for a day after its end.
    """

    id: str
    function: str
    qualifier: str
    state: str
    created: float
    due: float
    attempts: int
    owner: str = ""
    number: int = 0
    started: float | None = None
    finished: float | None = None
    source: str = ""
    version: str = ""
    error: str = ""
    result: bytes | None = None


class TriggerView(Value, frozen=True, kw_only=True):
    """A trigger. next: when a timer is due; path: of a function URL."""

    trigger: Trigger
    function: str
    next: float | None = None
    path: str = ""


class AliasView(Value, frozen=True, kw_only=True):
    """An alias of a function."""

    alias: Alias
    function: str


class ConfigView(Value, frozen=True, kw_only=True):
    """How asynchronous invocations of a qualifier are treated."""

    function: str
    qualifier: str
    config: AsyncConfig


class LayerView(Value, frozen=True, kw_only=True):
    """Code by a name, that functions have at /opt (`layers` of a function: names or digests). sha256: base64, of the
    archive it came as. labels: what clients of other APIs want to be told again.
    """

    name: str
    digest: str
    size: int
    created: float
    owner: str = ""
    sha256: str = ""
    labels: dict[str, str] = field(default_factory=dict)


class Message(Value, frozen=True, kw_only=True):
    """What a destination `queue:NAME` has got: the record of an invocation, JSON (in base64 here)."""

    id: int
    queue: str
    at: float
    body: bytes
