"""An engine in a process of its own, for a test that kills it: `net_child.py HOME`. Prints the address of each sandbox
that runs: one with nat and a port, one in a private network, one that ends after a second.
"""

import asyncio
import sys
from pathlib import Path

from joey.engine.supervisor import Engine
from joey.host.instance import Instance
from joey.model.network import NetworkSpec, PrivateNetwork
from joey.model.ports import PublishedPort
from joey.model.spec import Process, SandboxSpec


async def main() -> None:
    engine = Engine(Instance.open(Path(sys.argv[1])), slots=4)
    await engine.open()
    await engine.network_create(PrivateNetwork(name="back"))
    stays, ends = Process(argv=("sleep", "600")), Process(argv=("sleep", "0.5"))
    published = NetworkSpec(mode="nat", ports=(PublishedPort(container=8080, host=8095),))
    for name, network, process in (("a", published, stays), ("b", "back", stays), ("c", "nat", ends)):
        box = (await engine.run(SandboxSpec(image="host", process=process, network=network, name=name))).sandbox
        print(box.address, flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main())
