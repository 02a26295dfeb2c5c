"""What functions require, installed in a sandbox."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from pathlib import Path

import pytest

from joey.functions.code import CodeStore
from joey.functions.instance import Instance
from joey.functions.wire import Head
from joey.model.errors import Invalid
from joey.model.function import FunctionSpec, Version
from root.conftest import Lab

pytestmark = [pytest.mark.leak_scope("module"), pytest.mark.timeout(60)]


def wheel(path: Path) -> None:
    """A package, as pip takes it."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("answers/__init__.py", "ANSWER = 42\n")
        info = "answers-1.0.dist-info/"
        made.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: answers\nVersion: 1.0\n")
        made.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(info + "RECORD", "answers/__init__.py,,\n")


def test_requirements_layers_and_code_meet_in_an_instance(lab: Lab, tmp_path: Path) -> None:
    store = CodeStore(tmp_path / "store", lab.engine)
    store.open()

    async def work() -> None:
        source = (
            "import answers, helper\ndef handler(event, context): return [answers.ANSWER, helper.X, answers.__cached__]"
        )
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr("app.py", source)
            archive.writestr("requirements.txt", "./answers-1.0-py3-none-any.whl\n")
            wheel(tmp_path / "w.whl")
            archive.write(tmp_path / "w.whl", "answers-1.0-py3-none-any.whl")
        code = await store.add_zip(made.getvalue())
        layer = await store.add_inline({"python/helper.py": "X = 'layer'\n"})
        bad = asyncio.ensure_future(store.with_requirements(layer.digest, "./no-such-file.whl\n"))
        full = await store.with_requirements(code.digest)
        assert full.digest != code.digest and await store.read(full.digest, "answers/__init__.py") == b"ANSWER = 42\n"
        assert (await store.with_requirements(code.digest)).digest == full.digest
        assert len(list(store.path.glob("requirements-*"))) == 1

        spec = FunctionSpec(name="f", handler="app.handler", code=full.digest, layers=(layer.digest,))
        instance = await Instance.start(lab.engine, Version(spec=spec), await store.prepare(spec))
        answer = await instance.invoke(Head("r"), b"1")
        assert answer.body is not None, answer
        answered, helped, compiled = json.loads(answer.body)
        assert (answered, helped) == (42, "layer")
        assert await store.read(full.digest, compiled.removeprefix("/code/")) is not None  # no cold start compiles it
        await instance.stop()

        with pytest.raises(Invalid, match="no-such-file") as caught:
            await bad
        assert caught.value.where == "requirements" and not list(store.path.glob(".making-*"))

    lab.do(work(), 50)
