"""What the SDK does, on any engine: run by tests/unit/test_sdk_fake.py and tests/e2e/test_sdk.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

import joey
from joey import AsyncSandbox, Sandbox

FACTOR = 7


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox.create(metadata={"test": "sdk"}) as made:
        yield made


def times(x: int) -> dict[str, int]:
    print("this is not the result")
    if x == 3:
        raise ValueError("three")
    return {"x": x * FACTOR}


def test_hello() -> None:
    with Sandbox.create(envs={"GREETING": "hello"}) as sandbox:
        result = sandbox.commands.run("echo $GREETING; echo oops >&2; exit 3")
        assert (result.stdout, result.stderr, result.exit_code) == ("hello\n", "oops\n", 3)
        assert sandbox.is_running() and sandbox.get_info().state == "running"
    assert not sandbox.is_running() and sandbox.kill() is False


def test_hello_asyncio() -> None:
    async def main() -> None:
        async with await AsyncSandbox.create() as sandbox:
            result = await sandbox.commands.run(["sh", "-c", "cat; exit 4"], stdin="in")
            assert (result.stdout, result.exit_code) == ("in", 4)
            heard: list[str] = []

            async def hear(text: str) -> None:
                heard.append(text)

            await sandbox.commands.run("echo a; echo b >&2", on_stdout=hear, on_stderr=heard.append)
            assert sorted(heard) == ["a\n", "b\n"]

    asyncio.run(main())


def test_pool() -> None:
    with joey.Pool("host", size=2, envs={"A": "1"}, metadata={"pool": "yes"}) as pool:
        assert pool.info().ready == 2 and not [*Sandbox.list(metadata={"pool": "yes"})]
        with pool.create(envs={"B": "2"}, metadata={"n": "7"}, files={"/tmp/f": "x"}) as sandbox:
            assert sandbox.commands.run("echo $A $B $(cat /tmp/f 2>/dev/null)").stdout.split()[:2] == ["1", "2"]
            info = sandbox.get_info()
            assert info.labels == {"pool": "yes", "n": "7"} and info.deadline is not None
        with pytest.raises(joey.Invalid, match="read_only"):
            pool.create(read_only=True)
        for made in Sandbox.create_many(3, pool=pool):
            made.kill()
        assert pool.info().handed_out >= 2
        assert pool.resize(0).size == 0
    with pytest.raises(joey.NotFound):
        Sandbox.create(pool=pool.name)


def test_pool_asyncio() -> None:
    async def main() -> None:
        async with joey.AsyncPool(size=1) as pool, await AsyncSandbox.create(pool=pool) as sandbox:
            assert (await sandbox.commands.run(["echo", "a"])).stdout == "a\n"

    asyncio.run(main())


def test_pool_that_cannot_be() -> None:
    with pytest.raises(joey.JoeyError), joey.Pool(spec={"process": {"argv": ["/no/such/program"]}}):
        pass


def test_template(sandbox: Sandbox) -> None:
    """Made by a request, since it is an administrator's affair; used as any image is."""
    service = sandbox._service
    body = {"modules": ["json"], "spec": {"image": "host", "labels": {"of": "template"}}}
    made = service.call("PUT", "/v1/templates/warm", body, dict)
    assert (made["state"], made["name"], made["modules"]) == ("ready", "warm", ["json"])
    with Sandbox.create(template="warm", envs={"B": "2"}, metadata={"n": "7"}, files={"/tmp/f": "x"}, name="w") as one:
        result = one.commands.run("echo $B")
        info = one.get_info()
        assert (
            result.stdout == "2\n"
            and one.files.read("/tmp/f") == "x"
            and (info.name, info.labels["n"]) == ("w", "7")
            and info.deadline is not None
        )
    for more in ({"memory": "64m"}, {"read_only": True}, {"image": "host"}, {"network": "nat"}, {"pool": "x"}):
        with pytest.raises((joey.Invalid, joey.NotFound)):
            Sandbox.create(template="warm", **more)
    assert service.call("GET", "/v1/templates/warm", None, dict)["forks"] == 1
    assert [one["name"] for one in service.call("GET", "/v1/templates", None, list)] == ["warm"]
    with pytest.raises(joey.Invalid):
        service.call("PUT", "/v1/templates/bad", {"speed": 1}, dict)
    service.call("DELETE", "/v1/templates/warm")
    with pytest.raises(joey.NotFound):
        Sandbox.create(template="warm")


def test_output_as_it_comes(sandbox: Sandbox) -> None:
    heard: list[str] = []
    result = sandbox.commands.run("printf 'ü1'; sleep 0.05; printf 2", on_stdout=heard.append)
    assert "".join(heard) == result.stdout == "ü12"


def test_large_input_and_output(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 12000
    result = sandbox.commands.run("cat", stdin=data)
    assert result.stdout_bytes == data


def test_a_result_keeps_no_more_than_its_limit(sandbox: Sandbox) -> None:
    seen: list[str] = []
    result = sandbox.commands.run("printf 12345", limit=3, on_stdout=seen.append)
    assert result.truncated and result.stdout == "123" and "".join(seen) == "12345"


def test_check(sandbox: Sandbox) -> None:
    with pytest.raises(joey.CommandExit) as caught:
        sandbox.commands.run("echo why >&2; exit 5", check=True)
    assert caught.value.result.exit_code == 5 and "why" in str(caught.value)


def test_a_command_that_takes_too_long_is_killed(sandbox: Sandbox) -> None:
    with pytest.raises(joey.Timeout) as caught:
        sandbox.commands.run("echo before; exec sleep 60", timeout=0.2, on_stdout=lambda text: None)
    assert caught.value.stdout == b"before\n"


def test_a_callback_that_raises_ends_the_command(sandbox: Sandbox) -> None:
    with pytest.raises(ZeroDivisionError):
        sandbox.commands.run("echo x; sleep 60", on_stdout=lambda text: 1 / 0)


def test_no_such_program(sandbox: Sandbox) -> None:
    with pytest.raises(joey.errors.ProgramNotFound):
        sandbox.commands.run(["no-such-program-here"])


def test_a_terminal(sandbox: Sandbox) -> None:
    seen: list[bytes] = []
    terminal = sandbox.pty.create(cols=100, rows=30, cmd=["sh"], on_data=seen.append)
    terminal.resize(rows=31, cols=101)
    terminal.send_input("stty size; exit 6\n")
    assert terminal.wait().exit_code == 6 and b"31 101" in b"".join(seen)


def test_find_again(sandbox: Sandbox) -> None:
    sandbox.rename(f"other-{sandbox.id}")
    found = Sandbox.connect(sandbox.name)
    assert found.id == sandbox.id
    assert [one.id for one in Sandbox.list(metadata={"test": "sdk"}, name=sandbox.name)] == [sandbox.id]
    with pytest.raises(joey.NotFound):
        Sandbox.connect("nobody-has-this-name")


def test_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joey.client._sync.sandbox._PAGE", 2)
    many = Sandbox.create_many(5, metadata={"page": "1"})
    try:
        found = [one.id for one in Sandbox.list(metadata={"page": "1"})]
        assert sorted(found) == sorted(one.id for one in many) and len(found) == 5
        assert len(list(Sandbox.list(metadata={"page": "1"}, limit=3))) == 3
    finally:
        for one in many:
            one.kill()


def test_pause_and_resume(sandbox: Sandbox) -> None:
    sandbox.pause()
    assert sandbox.get_info().state == "paused" and not sandbox.is_running()
    again = Sandbox.connect(sandbox.id)
    assert again.is_running() and again.commands.run("echo on").stdout == "on\n"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"memory": "1k"}, "resources.memory"),
        ({"cpus": -1}, "resources.cpus"),
        ({"image": "no such image"}, "image"),
        ({"spec": {"potato": 1}}, "potato"),
        ({"name": "not a name!"}, "name"),
    ],
)
def test_bad_input_names_the_field(options: dict[str, object], field: str) -> None:
    with pytest.raises(joey.Invalid) as caught:
        Sandbox.create(**options)  # type: ignore[arg-type]
    assert caught.value.where == field


def test_many_with_one_that_cannot_be(sandbox: Sandbox) -> None:
    name = f"taken-{sandbox.id}"
    sandbox.rename(name)
    with pytest.raises(joey.Conflict):
        Sandbox.create_many(1, name=name)
    (failed,) = Sandbox.create_many(1, name=name, on_error="return")
    assert isinstance(failed, joey.Conflict)


def test_threads_share_a_service(sandbox: Sandbox) -> None:
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: codes.append(sandbox.commands.run(f"exit {n}").exit_code)) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == list(range(8))


def test_map_a_function() -> None:
    results = joey.map(times, range(5), concurrency=2, on_error="return", progress=False)
    assert [one if isinstance(one, dict) else type(one) for one in results] == [
        {"x": 0}, {"x": 7}, {"x": 14}, joey.RemoteError, {"x": 28},
    ]  # fmt: skip
    assert "ValueError" in results[3].traceback
    with pytest.raises(joey.RemoteError, match="three"):
        joey.map(times, [3], progress=False)
    assert not list(Sandbox.list(metadata={"joey.map": "1"}))


def test_map_takes_nothing_but_plain_data() -> None:
    (failed,) = joey.map(lambda x: {x}, [1], on_error="return", progress=False)
    assert isinstance(failed, joey.RemoteError) and "trust=True" in str(failed)
    assert joey.map(lambda x: {x}, [1], trust=True, progress=False) == [{1}]


def test_map_a_command_with_retries() -> None:
    results = joey.map("test {} != b && echo {}", ["a", "b", "c d"], on_error="return", retries=1, progress=False)
    assert results[0].stdout == "a\n" and results[2].stdout == "c d\n" and isinstance(results[1], joey.CommandExit)


def test_map_within_a_running_loop() -> None:
    async def main() -> list[object]:
        return joey.map(lambda x: x + 1, [1, 2], progress=False)

    assert asyncio.run(main()) == [2, 3]


def test_map_limits_an_attempt() -> None:
    def nap(seconds: float) -> float:
        import time

        time.sleep(seconds)
        return seconds

    results = joey.map(nap, [0, 60, 0], concurrency=1, timeout=0.4, on_error="return", progress=False)
    assert results[0] == results[2] == 0 and isinstance(results[1], joey.Timeout)


def test_ports_by_the_reverse_proxy() -> None:
    import http.client
    import socket
    import time

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # the fake engine's programs share it with us
    with Sandbox.create(spec={"proxy_token": "some-token"}) as sandbox:
        host = sandbox.get_host(port)
        name, _, proxy = host.partition(":")
        assert name == f"{port}-{sandbox.id}.localhost" and sandbox.get_url(port) == f"http://{host}"

        def get(*path: str, token: str = "some-token") -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", int(proxy), timeout=10)
            connection.request("GET", "/" + "/".join(path), headers={"Host": host, "X-Access-Token": token})
            response = connection.getresponse()
            data = response.read()
            connection.close()
            return response.status, data

        assert get(token="another")[0] == 401
        assert get()[0] == 502
        handle = sandbox.commands.start(f"cd /usr/share; exec python3 -m http.server {port} 2>/dev/null")
        end = time.monotonic() + 10
        while get()[0] != 200 and time.monotonic() < end:
            time.sleep(0.02)
        assert get()[0] == 200 and get("no-such-file")[0] == 404
        handle.kill()
    assert get()[0] == 404
    with pytest.raises(joey.Invalid):
        Sandbox.create(spec={"proxy_token": "short"})
