"""What a stage has come to: layers, configuration, arguments. The configuration is kept as OCI's JSON object, so what
Joey does not know of a base image stays in it. Pure.
"""

from __future__ import annotations

import copy
import datetime
from dataclasses import dataclass, field
from typing import Any

import msgspec

from joey.images.index import DOCKER_LAYERS, OCI_LAYERS, Descriptor
from joey.model.image import DEFAULT_PATH

Layers = list[tuple[str, Descriptor]]
_DROPPED = ("container", "container_config", "docker_version", "id", "parent", "throwaway")
_MEDIA = {docker: OCI_LAYERS[kind] for kind, docker in DOCKER_LAYERS.items()}
DEFAULT_SHELL = ["/bin/sh", "-c"]


@dataclass
class State:
    """layers: (diff id, blob), lowest first. args: those declared so far that have a value. own_command: whether CMD
    came from this stage. created: RFC 3339, of the last step that did something.
    """

    layers: Layers = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    own_command: bool = False
    created: str = "1970-01-01T00:00:00Z"

    @classmethod
    def scratch(cls, platform: str) -> State:
        system, architecture, variant = [*platform.split("/"), ""][:3]
        config: dict[str, Any] = {"architecture": architecture, "os": system}
        if variant:
            config["variant"] = variant
        run = {"Env": [f"PATH={DEFAULT_PATH}"], "WorkingDir": "/"}
        return cls(config={**config, "config": run, "history": []})

    @classmethod
    def of(cls, config: dict[str, Any], layers: Layers) -> State:
        """Of an image. Its layers' blobs keep their bytes, under OCI's names of their kinds."""
        known = {key: value for key, value in copy.deepcopy(config).items() if key not in _DROPPED}
        known["config"] = {key: value for key, value in (known.get("config") or {}).items() if value is not None}
        history = known.get("history")
        known["history"] = history if isinstance(history, list) else []
        missing = len(layers) - sum(not step.get("empty_layer") for step in known["history"])
        known["history"] += [{"created_by": "unknown"}] * max(0, missing)
        created = known.get("created")
        named = [(one, msgspec.structs.replace(blob, media_type=_MEDIA.get(blob.media_type, blob.media_type)))
                 for one, blob in layers]  # fmt: skip
        return cls(named, known, created=created if isinstance(created, str) else "1970-01-01T00:00:00Z")

    def fork(self) -> State:
        """For a stage that starts from this one: arguments are not passed on."""
        return State(list(self.layers), copy.deepcopy(self.config), created=self.created)

    # --- how programs run --------------------------------------------------------------------------------------------

    @property
    def run(self) -> dict[str, Any]:
        """The object `config` of the configuration."""
        found: dict[str, Any] = self.config.setdefault("config", {})
        return found

    @property
    def env(self) -> dict[str, str]:
        return dict(line.partition("=")[::2] for line in self.run.get("Env") or ())

    def set_env(self, name: str, value: str) -> None:
        """In its place, if it is there already."""
        env = {**self.env, name: value}
        self.run["Env"] = [f"{key}={text}" for key, text in env.items()]

    @property
    def values(self) -> dict[str, str]:
        """Variables an instruction may name: ENV goes before ARG."""
        return {**self.args, **self.env}

    @property
    def cwd(self) -> str:
        found = self.run.get("WorkingDir") or "/"
        return str(found) if found.startswith("/") else f"/{found}"

    @property
    def user(self) -> str:
        return str(self.run.get("User") or "")

    @property
    def shell(self) -> list[str]:
        return list(self.run.get("Shell") or DEFAULT_SHELL)

    @property
    def diff_ids(self) -> list[str]:
        return [one for one, _ in self.layers]

    # --- history -----------------------------------------------------------------------------------------------------

    def note(self, text: str, *, empty: bool, created: str = "") -> None:
        """One more entry of the history."""
        self.created = max(self.created, created) if created else self.created
        step: dict[str, Any] = {"created": self.created, "created_by": text, "comment": "joey build"}
        if empty:
            step["empty_layer"] = True
        self.config["history"].append(step)

    def encoded(self) -> bytes:
        """The configuration as a JSON text: the same bytes for the same state."""
        value = {**self.config, "created": self.created, "rootfs": {"type": "layers", "diff_ids": self.diff_ids}}
        return msgspec.json.encode(value)


def rfc3339(seconds: float) -> str:
    """An instant in UTC, whole seconds."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
