"""An engine in a process of its own, for tests that kill it: `engine_child.py HOME launch|hold COUNT`.

launch: starts sandboxes without end, COUNT at a time; prints a line once the first runs. hold: starts COUNT that
write a line every 20 ms and COUNT // 5 that end with status 7 when a second is over; prints a line when all run.
"""

import asyncio
import sys
from pathlib import Path

from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.spec import Process, SandboxSpec

TALK = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"


def say(text: str) -> None:
    print(text, flush=True)


async def launch(engine: Engine, count: int) -> None:
    async def one(number: int) -> None:
        while True:
            argv = ("true",) if number % 3 == 0 else ("sleep", "1000")
            spec = SandboxSpec(image="host", process=Process(argv=argv), remove=number % 6 == 1)
            box = (await engine.run(spec)).sandbox
            say(box.id)
            if number % 2:
                await engine.remove(box.id, force=True)
            elif number % 5 == 0:
                await engine.stop(box.id, 0)
                await engine.start(box.id)
            await asyncio.sleep(0)

    await asyncio.gather(*(one(number) for number in range(count)))


async def hold(engine: Engine, count: int) -> None:
    talking = [SandboxSpec(image="host", process=Process(argv=("sh", "-c", TALK)), name=f"t{i}") for i in range(count)]
    ending = [
        SandboxSpec(image="host", process=Process(argv=("sh", "-c", "sleep 1; echo bye; exit 7")), name=f"e{i}")
        for i in range(count // 5)
    ]
    await asyncio.gather(*(engine.run(spec) for spec in (*talking, *ending)))
    say("all run")
    await asyncio.sleep(1000)


async def main() -> None:
    engine = Engine(Instance.open(Path(sys.argv[1])), slots=4)
    await engine.open()
    await {"launch": launch, "hold": hold}[sys.argv[2]](engine, int(sys.argv[3]))


if __name__ == "__main__":
    asyncio.run(main())
