"""Instructions → stages, and which of them are needed in which order. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from joey.build import mounts, words
from joey.build.dockerfile import Dockerfile, Instruction
from joey.model.errors import Invalid

PROXIES = tuple(
    name
    for word in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (word, word.lower())
)
"""Build arguments that every RUN sees without being asked, and that are no part of any cache key."""
EPOCH = "SOURCE_DATE_EPOCH"
_NAME = re.compile(r"[a-z][a-z0-9_.-]*")


@dataclass
class Stage:
    """One FROM and what follows. base: number of the stage it starts from, or None; image: else its name, "" for
    scratch. needs: numbers of the stages it takes files from.
    """

    number: int
    name: str
    opening: Instruction
    base: int | None = None
    image: str = ""
    steps: list[Instruction] = field(default_factory=list)
    needs: set[int] = field(default_factory=set)

    @property
    def label(self) -> str:
        return self.name or str(self.number)


@dataclass(frozen=True)
class Plan:
    """order: stages to build, the last one is the result. globals: arguments before the first FROM, with the values
    they have; None for none. platform: values of TARGETPLATFORM and its kin.
    """

    stages: tuple[Stage, ...]
    order: tuple[Stage, ...]
    globals: Mapping[str, str | None]
    platform: Mapping[str, str]

    def stage(self, name: str) -> Stage | None:
        """By name or number."""
        return find(self.stages, name)

    @property
    def steps(self) -> int:
        return sum(1 + len(stage.steps) for stage in self.order)


def find(stages: Sequence[Stage], name: str) -> Stage | None:
    for stage in reversed(stages):
        if stage.name and stage.name == name.lower():
            return stage
    return stages[int(name)] if name.isdecimal() and len(name) < 4 and int(name) < len(stages) else None


def plan(file: Dockerfile, arguments: Mapping[str, str], platform: str, target: str = "") -> Plan:
    """arguments: --build-arg. platform: os/architecture[/variant], of this machine. Raises Invalid naming the line."""
    system, architecture, variant = [*platform.split("/"), ""][:3]
    parts = {"PLATFORM": platform, "OS": system, "ARCH": architecture, "VARIANT": variant}
    ours = {f"{who}{key}": value for who in ("TARGET", "BUILD") for key, value in parts.items()}
    values: dict[str, str | None] = {}
    stages: list[Stage] = []
    for one in file.instructions:
        if one.keyword == "FROM":
            known = {**ours, **{key: value for key, value in values.items() if value is not None}}
            stages.append(_open(one, stages, known, file.escape, platform))
        elif stages:
            stages[-1].steps.append(one)
        elif one.keyword == "ARG":
            for name, value in arguments_of(one, file.escape):
                known = {**ours, **{key: text for key, text in values.items() if text is not None}}
                default = None if value is None else expand(one, value, known, file.escape)
                values[name] = arguments.get(name, default)
        else:
            raise one.error(f"{one.keyword} stands before the first FROM", "only ARG may")
    if not stages:
        raise Invalid(file.instructions[0].file, "has no FROM", "FROM debian:12, or FROM scratch")
    _later_bases(stages)
    for stage in stages:
        _needs(stage, stages)
    order = _order(stages, _target(stages, target))
    return Plan(tuple(stages), order, values, ours)


def expand(one: Instruction, text: str, values: Mapping[str, str], escape: str) -> str:
    try:
        return words.expand(text, values, escape)
    except words.WordError as error:
        raise one.error(str(error)) from None


def arguments_of(one: Instruction, escape: str) -> list[tuple[str, str | None]]:
    """NAME[=DEFAULT] … of an ARG, not expanded."""
    try:
        found = words.split(one.rest, escape)
    except words.WordError as error:
        raise one.error(str(error)) from None
    done: list[tuple[str, str | None]] = []
    for word in found:
        name, equals, value = word.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise one.error(f"ARG: {name!r} is no name of a variable")
        done.append((name, value if equals else None))
    return done


def _open(one: Instruction, stages: list[Stage], values: Mapping[str, str], escape: str, platform: str) -> Stage:
    found = one.rest.split()
    if len(found) not in (1, 3) or (len(found) == 3 and found[1].upper() != "AS"):
        raise one.error("FROM takes an image, and perhaps AS and a name", "FROM debian:12 AS base")
    name = found[2].lower() if len(found) == 3 else ""
    if name and not _NAME.fullmatch(name):
        raise one.error(f"FROM: {found[2]!r} cannot be the name of a stage", "letters, digits, and _ . - between")
    if name and any(stage.name == name for stage in stages):
        raise one.error(f"FROM: a stage {name!r} is there already")
    wanted = expand(one, one.flag("platform"), values, escape)
    if wanted and not same_platform(wanted, platform):
        raise one.error(f"FROM: this machine builds for {platform}, not for {wanted}", "leave --platform out")
    base = expand(one, found[0], values, escape)
    if not base:
        raise one.error(f"FROM: {found[0]} is empty: the argument has no value", "--build-arg NAME=VALUE, or a default")
    stage = Stage(len(stages), name, one)
    earlier = next((other for other in stages if other.name and other.name == base.lower()), None)
    if earlier is not None:
        stage.base = earlier.number
        stage.needs.add(earlier.number)
    else:
        stage.image = "" if base == "scratch" else base
    return stage


def same_platform(wanted: str, own: str) -> bool:
    """linux/amd64, amd64, linux/arm64 for linux/arm64/v8."""
    alias = {"x86_64": "amd64", "aarch64": "arm64"}
    parts = wanted.split("/")
    parts = [alias.get(part, part) for part in (parts if len(parts) > 1 else ["linux", *parts])]
    return own.split("/")[: len(parts)] == parts


def _later_bases(stages: list[Stage]) -> None:
    for stage in stages:
        for other in stages[stage.number + 1 :]:
            if stage.base is None and other.name and other.name == stage.image:
                raise stage.opening.error(
                    f"FROM: the stage {other.name!r} is defined later, on line {other.opening.line}",
                    "a stage starts from one above it, so FROM can make no cycle",
                )


def _needs(stage: Stage, stages: list[Stage]) -> None:
    for one in stage.steps:
        names = [one.flag("from")] if one.keyword == "COPY" else []
        if one.keyword == "RUN":
            names = [mounts.parse(one, text).from_ for key, text in one.flags if key == "mount" and "$" not in text]
        for name in filter(None, names):
            if "$" in name:
                raise one.error("--from cannot hold a variable", "give the stage a name: FROM $X AS name")
            found = find(stages, name)
            if found is stage:
                raise one.error(f"the stage {stage.label!r} takes files from itself", "leave --from out")
            if found is not None:
                stage.needs.add(found.number)


def _target(stages: list[Stage], name: str) -> Stage:
    if not name:
        return stages[-1]
    found = find(stages, name)
    if found is None:
        known = ", ".join(stage.label for stage in stages)
        raise Invalid("target", f"there is no stage {name!r}", f"one of {known}")
    return found


def _order(stages: list[Stage], last: Stage) -> tuple[Stage, ...]:
    """Every stage after what it needs. Raises Invalid for a cycle."""
    done: list[Stage] = []
    path: list[Stage] = []

    def visit(stage: Stage) -> None:
        if stage in done:
            return
        if stage in path:
            circle = " -> ".join(one.label for one in [*path[path.index(stage) :], stage])
            raise stage.opening.error(f"stages need each other: {circle}", "one of them has to come first")
        path.append(stage)
        for number in sorted(stage.needs):
            visit(stages[number])
        path.pop()
        done.append(stage)

    visit(last)
    return tuple(done)
