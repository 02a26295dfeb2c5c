"""Which templates functions have: an engine that only counts them."""

import asyncio
from types import SimpleNamespace

from fn_lab import deployed
from joey.functions import warm
from joey.functions.instance import Paths
from joey.functions.warm import WarmFunctions, imports, template_spec
from joey.model.errors import TooMany

SOURCE = """
import numpy as np, os.path
from pandas import DataFrame
from . import mine
import helper
def handler(event, context):
    import late
"""


class Engine:
    """Keeps the templates that are there."""

    def __init__(self):
        self.made, self.state, self.fails = {}, "ready", False

    async def template_create(self, template, *, owner):
        if self.fails:
            raise TooMany("templates", "100 already")
        await asyncio.sleep(0)
        self.made[template.name] = (template, owner)
        return SimpleNamespace(state=self.state, reason="threads" if self.state != "ready" else "")

    async def template_remove(self, name, *, owner):
        del self.made[name]

    def templates(self, owner):
        return [SimpleNamespace(name=name, owner=owner) for name, (_, owner) in self.made.items()]


async def settle():
    for _ in range(20):
        await asyncio.sleep(0.001)


def test_imports_at_the_top_of_a_file():
    assert imports(SOURCE) == ["numpy", "os.path", "pandas", "helper"]
    assert imports("def (:") == []


def test_what_is_warm_is_what_others_wrote(tmp_path):
    (tmp_path / "helper.py").write_text("")
    one = deployed("f", modules=("json",), secrets={"KEY": "hush"})
    spec = template_spec(one, Paths(tmp_path), "fn-x", SOURCE)
    assert spec.modules[-1] == "json" and spec.code == str(tmp_path)
    assert "import numpy" in spec.init and "import pandas" in spec.init
    assert "helper" not in spec.init and "hush" not in repr(spec)


def test_a_template_is_made_once_used_and_let_go():
    async def main():
        engine = Engine()
        own = WarmFunctions(engine)
        one, other = deployed("f", "k"), deployed("f", "k", timeout=9)
        assert own.name(one, Paths()) == ""
        assert own.name(one, Paths()) == ""
        await settle()
        name = own.name(one, Paths())
        assert list(engine.made) == [name] and engine.made[name][1] == "k"
        own.name(other, Paths())
        await settle()
        assert own.name(other, Paths()) not in ("", name)
        own.tidy({other.key})
        await settle()
        assert name not in engine.made and len(engine.made) == 1
        await own.close()
        assert not engine.made

    asyncio.run(main())


def test_what_cannot_be_forked_says_why_and_is_tried_again_later(monkeypatch):
    async def main():
        engine = Engine()
        engine.state = "unsafe"
        told = []
        own, one = WarmFunctions(engine, lambda function, reason: told.append((function.function, reason))), deployed()
        own.make(one, Paths())
        await settle()
        assert told == [(one.function, "threads")]
        assert own.name(one, Paths()) == ""
        monkeypatch.setattr(warm, "AGAIN_SECONDS", 0.0)
        engine.state = "ready"
        own.name(one, Paths())
        await settle()
        assert own.name(one, Paths())
        engine.fails = True
        own.make(deployed("g"), Paths())
        await settle()
        assert told[-1][0] == deployed("g").function and told[-1][1].endswith("100 already")
        await own.close()

    asyncio.run(main())


def test_only_python_has_templates_and_not_more_than_there_is_room(monkeypatch):
    async def main():
        engine = Engine()
        own = WarmFunctions(engine)
        own.make(deployed("off", template=False), Paths())
        monkeypatch.setattr(warm, "MOST", 3)
        for number in range(6):
            own.make(deployed(f"f{number}"), Paths())
            await settle()
        assert len(engine.made) == 3
        await WarmFunctions(engine).sweep()
        assert not engine.made

    asyncio.run(main())
