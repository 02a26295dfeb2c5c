"""RUN: a sandbox on the files so far, whose writable layer becomes the step's layer."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import dataclasses
import os
import posixpath
import secrets
import stat
from pathlib import Path
from typing import Any

from joey.build import mounts, trees
from joey.build.dockerfile import Instruction
from joey.build.mounts import StepMount
from joey.build.planner import PROXIES, expand
from joey.build.state import State
from joey.build.trees import Tree
from joey.build.workshop import DEFAULT_NETWORK, LABEL, NETWORKS, SECRET, Workshop
from joey.images import caches, commit
from joey.images.commit import MadeLayer
from joey.model.errors import Invalid, from_os
from joey.model.resources import Resources
from joey.model.spec import Mount, Process, SandboxSpec, Tmpfs

_PIDS, _KEY_PIDS = 8192, 1024
_MEMORY_PERCENT = 75
_ALWAYS = ("/proc", "/dev", "/sys")
_OURS = ("/etc/resolv.conf", "/etc/hosts", "/etc/hostname")
"""What the engine writes into a sandbox with a network; changes of it are no part of an image (as Docker's)."""
_SCRIPT = "/.joey-script"


class RunStep:
    """One RUN of one build. roots: trees of the stages and images its mounts name."""

    def __init__(self, shop: Workshop, state: State, one: Instruction, escape: str, roots: dict[str, Tree]) -> None:
        self.shop, self.state, self.one, self.roots = shop, state, one, roots
        known = state.values
        self.mounts = [mounts.parse(one, expand(one, text, known, escape)) for key, text in one.flags if key == "mount"]
        self.network = expand(one, one.flag("network"), known, escape) or shop.options.network
        if self.network not in NETWORKS:
            raise one.error(f"RUN: --network={self.network} is unknown", ", ".join(NETWORKS))
        self.script = ""
        self.argv = self._argv()
        if not state.layers:
            raise one.error("RUN: there is nothing to run, the image is still empty", "COPY programs first")
        places = [mount.target for mount in self.mounts if mount.target]
        for place in places:
            if places.count(place) > 1:
                raise one.error(f"RUN: two mounts have the target {place}")

    def _argv(self) -> list[str]:
        if (found := self.one.exec_form) is not None:
            if not found:
                raise self.one.error("RUN: the command is empty")
            return list(found)
        shell, documents = self.state.shell, self.one.heredocs
        if len(documents) == 1 and len(self.one.rest.split()) == 1:
            content = documents[0].content
            if content.startswith("#!"):
                self.script = content
                return [_SCRIPT]
            return [*shell, content]
        lines = [self.one.rest, *(f"{one.content}{one.name}" for one in documents)]
        return [*shell, "\n".join(lines)]

    # --- the key -----------------------------------------------------------------------------------------------------

    def key(self) -> list[Any]:
        """What its result depends on: files, program, variables, mounts. Secrets and proxies do not count. Blocks."""
        own = self.state.env
        env = {name: value for name, value in self.state.values.items() if name in own or name not in PROXIES}
        found = [self._mount_key(mount) for mount in self.mounts]
        rest = [self.argv, self.script, sorted(env.items()), self.state.user, self.state.cwd, self.network]
        return ["run", self.state.diff_ids, *rest, found]

    def _mount_key(self, mount: StepMount) -> list[Any]:
        key: list[Any] = [mount.type, mount.target, mount.id if mount.type != "bind" else "", mount.env]
        if mount.type == "bind":
            tree, path = self._source(mount)
            key.append(trees.fingerprint(trees.Item(tree, path, posixpath.basename(path)), owners=bool(mount.from_)))
        return key

    def _source(self, mount: StepMount) -> tuple[Tree, str]:
        tree = self.roots[mount.from_] if mount.from_ else self.shop.context
        try:
            path = tree.real(trees.inside(mount.source))
        except (ValueError, OSError) as error:
            raise self.one.error(f"RUN: --mount: {error}") from None
        if tree.stat(path) is None:
            raise self.one.error(f"RUN: --mount: {mount.source} is not in {mount.from_ or 'the context'}")
        return tree, path

    # --- doing it ----------------------------------------------------------------------------------------------------

    async def make(self) -> MadeLayer:
        """Run it; → its layer. Raises Invalid naming the line when it fails. Nothing is left when it is cancelled."""
        shop = self.shop
        image = await shop.thread(lambda: shop.put(_for_step(self.state)))
        shop.hold(*self.state.diff_ids)
        async with contextlib.AsyncExitStack() as stack:
            spec = await self._spec(image.digest, stack)
            started = await shop.engine.run(spec, attach=True, owner=shop.options.owner)
            id = started.sandbox.id
            try:
                assert started.attachment is not None
                await self._follow(started.attachment)
                end = await started.attachment.wait()
                if end.code:
                    memory = " because it ran out of memory" if end.oom else ""
                    raise self.one.error(f"RUN ended with status {end.code}{memory}")
                return await shop.thread(lambda: self._layer(id, spec))
            finally:
                await _whole(shop.engine.remove(id, force=True))

    async def _follow(self, attachment: Any) -> None:
        decoders = {one: codecs.getincrementaldecoder("utf-8")("replace") for one in (1, 2)}
        while (piece := await attachment.read()) is not None:
            text = decoders[piece[0]].decode(piece[1])
            if text:
                self.shop.tell({"output": text, "stream": piece[0]})
                await self.shop.room()
        for number, decoder in decoders.items():
            if rest := decoder.decode(b"", True):
                self.shop.tell({"output": rest, "stream": number})

    async def _spec(self, image: str, stack: contextlib.AsyncExitStack) -> SandboxSpec:
        env, found, memory = dict(self.state.args), [], []
        arguments = self.shop.options.arguments
        env.update({name: arguments[name] for name in PROXIES if name in arguments})
        env.update(self.state.env)
        for mount in self.mounts:
            if mount.type == "tmpfs":
                memory.append(Tmpfs(target=self._target(mount), size=mount.size))
            elif mount.type == "secret":
                found += self._secret(mount, env, stack)
            elif mount.type == "bind":
                tree, inner = self._source(mount)
                found.append(Mount(source=tree.place(inner), target=self._target(mount), read_only=True))
            else:
                root, how = self.shop.store.root, (mount.sharing, mount.uid, mount.gid, mount.mode)
                path = await stack.enter_async_context(caches.use(root, mount.id, *how))
                found.append(Mount(source=str(path), target=self._target(mount), read_only=mount.read_only))
        if self.script:
            script = self.shop.folder / f"script-{secrets.token_hex(4)}"
            script.write_text(self.script)
            script.chmod(0o755)
            found.append(Mount(source=str(script), target=_SCRIPT, read_only=True))
        network = DEFAULT_NETWORK if self.network == "default" else self.network
        options = self.shop.options
        process = Process(
            argv=tuple(self.argv), env=env, cwd=self.state.cwd, user=self.state.user,
            no_new_privileges=bool(options.owner),
        )  # fmt: skip
        total = self.shop.engine.machine.facts.mem_total
        resources = Resources(memory=total * _MEMORY_PERCENT // 100, pids=_PIDS)
        if options.memory:
            resources = Resources(memory=min(options.memory, total), swap=0, pids=_KEY_PIDS)
        storage: Any = "memory" if options.memory else "disk"
        return SandboxSpec(
            image=image, pull="never", process=process, entrypoint=(), storage=storage, network=network,
            resources=resources, mounts=tuple(found), tmpfs=tuple(memory), labels={LABEL: self.shop.id},
        )  # fmt: skip

    def _target(self, mount: StepMount) -> str:
        return posixpath.normpath(posixpath.join(self.state.cwd, mount.target))

    def _secret(self, mount: StepMount, env: dict[str, str], stack: contextlib.AsyncExitStack) -> list[Mount]:
        """In memory, and gone with the step; never in a layer and never in a key."""
        data = self.shop.options.secrets.get(mount.id)
        if data is None:
            if mount.required:
                raise self.one.error(f"RUN: the secret {mount.id} is required", f"--secret id={mount.id},src=FILE")
            return []
        if mount.env:
            env[mount.env] = data.decode("utf-8", "surrogateescape")
        if not mount.target:
            return []
        path = Path(self.shop.engine.machine.storage.scratch) / f"{SECRET}{secrets.token_hex(8)}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            stack.callback(path.unlink, missing_ok=True)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                os.fchown(file.fileno(), mount.uid, mount.gid)
                os.fchmod(file.fileno(), 0o400 if mount.mode is None else mount.mode)
        except OSError as error:
            raise from_os("keep a secret", error) from error
        return [Mount(source=str(path), target=self._target(mount), read_only=True)]

    # --- its layer ---------------------------------------------------------------------------------------------------

    def _layer(self, id: str, spec: SandboxSpec) -> MadeLayer:
        engine = self.shop.engine
        slot = engine.find(id).slot
        if slot is None:
            raise Invalid("build", "the sandbox of a step was removed meanwhile", "build again")
        upper = engine.machine.storage.writable(slot.name, spec)
        base = self.shop.tree(self.state)
        assert base is not None
        targets = [*_ALWAYS, *(mount.target for mount in spec.mounts), *(one.target for one in spec.tmpfs)]
        try:
            for target in _OURS:
                _remove_ours(upper, base, target)
            for target in targets:
                _remove_stub(upper, base, target)
        except OSError as error:
            raise from_os("clear mount points away", error) from error
        shop = self.shop
        return commit.upper_layer(shop.store, upper, hold=shop.hold, shift=slot.base, epoch=shop.options.epoch)


def _for_step(state: State) -> State:
    """What is said of sandboxes of the image is not of this one: its health, and directories to be there."""
    run = {name: value for name, value in state.config["config"].items() if name not in ("Volumes", "Healthcheck")}
    return dataclasses.replace(state, config={**state.config, "config": run})


def _remove_ours(upper: Path, base: Tree, target: str) -> None:
    """Take back what the engine wrote, and the copy of its directory if nothing else is in it."""
    written, path = Tree(upper), base.real(target, last=False)
    if written.real(path, last=False) != path:
        return
    found = written.stat(path)
    if found is None or stat.S_ISDIR(found.st_mode):
        return
    os.unlink(written.place(path))
    folder = posixpath.dirname(path)
    now, then = written.stat(folder), base.stat(folder)
    if not folder or now is None or then is None or os.listdir(written.place(folder)):
        return
    if now.st_mode == then.st_mode and not any("opaque" in name for name in os.listxattr(written.place(folder))):
        os.rmdir(written.place(folder))


def _remove_stub(upper: Path, base: Tree, target: str) -> None:
    """What was made only to mount something on it is no part of the layer, nor are directories made for that."""
    path = base.real(target)
    written = Tree(upper)
    while path and base.stat(path) is None:
        if written.real(path) != path:  # a link of the step's leads elsewhere
            return
        found = written.stat(path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            if os.listdir(written.place(path)):
                return
            os.rmdir(written.place(path))
        elif found is not None and stat.S_ISREG(found.st_mode) and not found.st_size:
            os.unlink(written.place(path))
        elif found is not None:
            return
        path = posixpath.dirname(path)


async def _whole(work: Any) -> None:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
