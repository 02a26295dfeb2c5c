"""The code interpreter's SDK, unmodified, against Joey: `python scenarios_e2b_code.py [sync|asynchronous]`."""

import asyncio
import base64
import contextlib
import threading
import time
from typing import Any

import e2b
import httpx
from e2b_code_interpreter import AsyncSandbox, Sandbox

from scenarios_e2b import finish, raises, until

RICH = """
from IPython.display import display, HTML, JSON, Markdown
display(HTML('<b>b</b>'))
display(JSON({'k': [1]}))
display(Markdown('# m'))
'text'
"""
PLOT = """
import matplotlib.pyplot as plt
plt.plot([1, 2, 3], [4, 5, 6], label="first")
plt.xlabel("time (s)")
plt.title("Rise")
plt.show()
figure, both = plt.subplots(1, 3)
both[0].bar(["a", "b"], [1, 2])
both[1].pie([1, 3], labels=["x", "y"])
both[2].scatter([1, 2], [3, 4])
plt.show()
"""


def sync() -> None:
    sandbox = Sandbox.create(timeout=120, envs={"OWN": "1"}, network={"allow_public_traffic": False})
    run = sandbox.run_code
    first = run("x = 20\nx + 1")
    assert (first.text, first.error, first.logs.stdout) == ("21", None, []) and first.results[0].is_main_result
    found = run("import os\nprint(os.getcwd(), os.environ['OWN'], os.environ.get('MORE'), x)", envs={"MORE": "2"})
    assert found.logs.stdout == ["/home/user 1 2 20\n"] and found.execution_count == first.execution_count + 1
    assert run("os.environ.get('MORE'), os.environ['E2B_SANDBOX_ID']").text == f"(None, '{sandbox.sandbox_id}')"
    failed = run("print('before')\nimport sys\nprint('err', file=sys.stderr)\n1 / 0")
    assert failed.error is not None and failed.error.name == "ZeroDivisionError" and "1" in failed.error.traceback
    sandbox.files.write("/home/user/module_of_mine.py", "V = 7")
    assert run("import module_of_mine; module_of_mine.V").text == "7"
    postponed = run("import urllib.request, IPython; urllib.request.urlopen.__module__, IPython.embed.__module__").text
    assert postponed == "('urllib.request', 'IPython.terminal.embed')"
    assert failed.logs.stdout == ["before\n"] and failed.logs.stderr == ["err\n"]
    streaming(sandbox)
    results(sandbox)
    contexts(sandbox)
    endings(sandbox)
    private(sandbox)
    killer = threading.Timer(0.3, sandbox.kill)
    killer.start()
    with contextlib.suppress(e2b.TimeoutException):  # an answer that is cut off is not one of success
        cut = run("import time; time.sleep(30)")
        assert cut.error is not None and cut.error.name == "KernelDied", cut
    killer.join()
    assert not sandbox.kill()
    raises(e2b.TimeoutException, lambda: sandbox.run_code("1"), "was not found")


def streaming(sandbox: Sandbox) -> None:
    times: list[float] = []
    code = "import time\nfor i in range(3):\n    print(i, flush=True)\n    time.sleep(.15)"
    sandbox.run_code(code, on_stdout=lambda _: times.append(time.monotonic()))
    assert len(times) == 3 and times[2] - times[0] > 0.2, "output is not streamed"


def results(sandbox: Sandbox) -> None:
    run = sandbox.run_code
    table = run("import pandas\npandas.DataFrame({'a': [1, 2], 'b': ['x', None]})").results[0]
    assert table.html and "<table" in table.html and table.data == {"a": [1, 2], "b": ["x", None]} and table.text
    shown = run(RICH)
    found = [(one.html, one.json, one.markdown, one.is_main_result) for one in shown.results]
    assert found[:2] == [("<b>b</b>", None, None, False), (None, {"k": [1]}, None, False)]
    assert found[2:] == [(None, None, "# m", False), (None, None, None, True)]
    assert shown.text == "text"
    line, several = run(PLOT).results
    assert line.png is not None and base64.b64decode(line.png).startswith(b"\x89PNG") and line.chart is not None
    chart: Any = line.chart
    assert (chart.type.value, chart.title, chart.x_label, chart.x_unit) == ("line", "Rise", "time (s)", "s")
    assert [(one.label, one.points) for one in chart.elements] == [("first", [(1, 4), (2, 5), (3, 6)])]
    parts: Any = several.chart
    assert [one.type.value for one in parts.elements] == ["bar", "pie", "scatter"]
    assert [(one.label, one.value) for one in parts.elements[0].elements] == [("a", 1), ("b", 2)]
    assert [(one.label, round(one.angle)) for one in parts.elements[1].elements] == [("x", 90), ("y", 270)]


def contexts(sandbox: Sandbox) -> None:
    run = sandbox.run_code
    other = sandbox.create_code_context(cwd="/tmp")
    assert run("import os; y = 1; os.getcwd()", context=other).text == "/tmp" and run("'y' in dir()").text == "False"
    assert {one.cwd for one in sandbox.list_code_contexts()} == {"/home/user", "/tmp"}
    sandbox.restart_code_context(other)
    assert run("'y' in dir()", context=other).text == "False"
    sandbox.remove_code_context(other)
    raises(e2b.NotFoundException, lambda: run("1", context=other))
    raises(e2b.SandboxException, lambda: run("1", language="r"), "not supported")
    raises(e2b.SandboxException, lambda: sandbox.create_code_context(cwd="/no/such"), "no directory")
    numbers = [run("import random; random.random()", context=one).text for one in (None, sandbox.create_code_context())]
    assert numbers[0] != numbers[1], "forks draw the same"


def endings(sandbox: Sandbox) -> None:
    """Clients that leave end what they have started, kernels that die are replaced."""
    run = sandbox.run_code
    raises(e2b.TimeoutException, lambda: run("import os; os.system('sleep 31416')", timeout=0.3))
    until(lambda: not sleeping(sandbox), "a program of a client that has left goes on")
    raises(e2b.TimeoutException, lambda: run("z = 1\nwhile True: pass", timeout=0.3))
    assert run("z").text == "1", "the kernel's state is lost"
    died = run("import os; os.kill(os.getpid(), 9)")
    assert died.error is not None and died.error.name == "KernelDied"
    assert run("'z' in dir()").text == "False"
    stubborn = "while True:\n    try:\n        time.sleep(9)\n    except KeyboardInterrupt:\n        pass"
    raises(e2b.TimeoutException, lambda: run(f"import time\n{stubborn}", timeout=0.3))
    assert run("8").text == "8", "ended for what another had asked"
    asked = run("input()")
    assert asked.error is not None and "Stdin" in asked.error.name


def sleeping(sandbox: Sandbox) -> str:
    return sandbox.commands.run("pgrep -f 'sleep 3141[6]' || true").stdout


def private(sandbox: Sandbox) -> None:
    """Ports of a sandbox that is not for everybody."""
    assert sandbox.traffic_access_token
    host = sandbox.get_host(49999)
    url = f"http://127.0.0.1:{host.rpartition(':')[2]}/contexts"
    for headers, status in (({}, 401), ({"E2B-Traffic-Access-Token": sandbox.traffic_access_token}, 200)):
        assert httpx.get(url, headers={"Host": host, **headers}).status_code == status
    url = f"{sandbox.connection_config.get_sandbox_url(sandbox.sandbox_id, '', port=49999)}/contexts"
    named = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49999"}
    assert httpx.get(url, headers=named).status_code == 401
    assert (
        httpx.get(
            url,
            headers={
                **named,
                "E2b-Sandbox-Port": "48888",
                "E2B-Traffic-Access-Token": str(sandbox.traffic_access_token),
            },
        ).status_code
        == 502
    )


async def asynchronous() -> None:
    sandbox = await AsyncSandbox.create(timeout=120)
    contexts = await asyncio.gather(*(sandbox.create_code_context() for _ in range(3)))
    work = [sandbox.run_code(f"v = {at}; v * 2", context=one) for at, one in enumerate(contexts)]
    assert [one.text for one in await asyncio.gather(*work)] == ["0", "2", "4"]
    task = asyncio.ensure_future(sandbox.run_code("import os; os.system('sleep 31416')"))
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for _ in range(100):
        if not (await sandbox.commands.run("pgrep -f 'sleep 3141[6]' || true")).stdout:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("a program of a client that has left goes on")
    assert (await sandbox.run_code("3")).text == "3" and await sandbox.kill()


if __name__ == "__main__":
    finish(sync, asynchronous)
