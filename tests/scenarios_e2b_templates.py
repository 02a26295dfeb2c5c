"""Templates of the E2B SDK, unmodified, against Joey: `python scenarios_e2b_templates.py [sync|asynchronous]`."""

import asyncio
import tempfile
from pathlib import Path

import e2b
from e2b import AsyncSandbox, AsyncTemplate, Sandbox, Template

from scenarios_e2b import finish, raises

DOCKERFILE = """FROM e2bdev/base
ARG A=1
ENV B="x y"
COPY app.py /srv/app.py
WORKDIR /srv
RUN echo "$B" > b
USER root
CMD ["sleep", "7"]
"""
PORT = "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8080))'"


def sync() -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        (context / "src/deep").mkdir(parents=True)
        (context / "app.py").write_text("print('app')\n")
        (context / "src/deep/a b.txt").write_text("A\n")
        (context / "src/left-out").write_text("")
        (context / ".dockerignore").write_text("src/left-out\n")
        built(context)
        from_dockerfile(context)
        failures(context)
    assert Sandbox.list().next_items() == []


def built(context: Path) -> None:
    template = (
        Template(file_context_path=context)
        .from_base_image()
        .set_envs({"GREETING": 'it\'s "é" $HOME\\', "OTHER": "2"})
        .set_workdir("/home/user/work")
        .copy("app.py", "app.py", mode=0o755)
        .copy("src", "data/", user="root")
        .run_cmd("echo $OTHER > made; id -un; echo warned >&2")
        .run_cmd("id -un > /who", user="root")
        .make_dir("/home/user/www")
        .set_start_cmd("cd /home/user/www && exec python3 -m http.server 8080 -b 127.0.0.1", PORT)
    )
    lines: list[str] = []
    info = Template.build(
        template,
        "mine:v1",
        tags=["stable"],
        memory_mb=300,
        skip_cache=True,
        on_build_logs=lambda one: lines.append(str(one)),
    )
    assert any("[info] user" in line for line in lines) and any("[warn] warned" in line for line in lines), lines
    assert any("ready command" in line for line in lines)
    assert Template.exists("mine") and not Template.exists("yours")
    raises(e2b.SandboxException, lambda: Sandbox.create("mine"), "no tag 'default'")
    sandbox = Sandbox.create("mine:v1", timeout=60, envs={"OTHER": "3"})
    run = sandbox.commands.run
    assert run("pwd; id -un; cat made /who; echo $OTHER").stdout == "/home/user/work\nuser\n2\nroot\n3\n"
    assert (
        run("echo $GREETING").stdout == 'it\'s "é" /home/user\\\n' or run("echo $GREETING").stdout == 'it\'s "é" \\\n'
    )
    assert run("./app.py 2>&1 || python3 app.py; stat -c %U:%a data/deep app.py").stdout.endswith(
        "app\nroot:755\nuser:755\n"
    )
    assert run("ls -A data data/deep").stdout == "data:\ndeep\n\ndata/deep:\na b.txt\n"
    run(PORT)  # the start command runs
    assert sandbox.get_info().template_id == "mine:v1" and sandbox.get_metrics()[0].mem_total == 300 << 20
    assert sandbox.kill()
    assert Template.assign_tags("mine:stable", ["default", "x"]).build_id == info.build_id
    Template.remove_tags("mine", "x")
    assert [one.tag for one in Template.get_tags("mine")] == ["v1", "stable", "default"]
    child = Template().from_template("mine").run_cmd("cat made; echo child > made")
    Template.build(child, "child")
    sandbox = Sandbox.create("child", timeout=60)
    assert sandbox.commands.run("cat made; " + PORT).stdout == "child\n" and sandbox.kill()


def from_dockerfile(context: Path) -> None:
    text = DOCKERFILE
    Template.build(Template(file_context_path=context).from_dockerfile(text), "from-docker")
    sandbox = Sandbox.create("from-docker", timeout=60)
    done = sandbox.commands.run("pwd; cat b; id -un; pgrep -x sleep >&2; ls")
    assert (done.stdout, bool(done.stderr)) == ("/srv\nx y\nroot\napp.py\nb\n", True)
    assert sandbox.kill()


def failures(context: Path) -> None:
    raises(
        e2b.BuildException, lambda: Template.build(Template().from_base_image().run_cmd("exit 3"), "bad"), "status 3"
    )
    missing = Template().from_image("localhost/no-such:1").run_cmd("true")
    raises(e2b.BuildException, lambda: Template.build(missing, "bad"), "no registry")
    private = Template().from_image("a/b", username="u", password="p")
    raises(e2b.BuildException, lambda: Template.build(private, "bad"), "not supported")
    raises(e2b.BuildException, lambda: Template.build(Template().from_base_image(), "base"), "Joey's own")
    raises(e2b.BuildException, lambda: Template.build(Template().from_template("no-such"), "bad"), "not found")
    never = Template().from_base_image().set_envs({"A": "a\nb"})
    raises(e2b.BuildException, lambda: Template.build(never, "bad"), "several lines")
    raises(e2b.SandboxException, lambda: Sandbox.create("bad"), "404")
    raises(e2b.SandboxException, lambda: Sandbox.create("localhost/no-such:1"), "404")
    raises(e2b.TemplateException, lambda: Template.get_tags("no-such"), "not found")


async def asynchronous() -> None:
    template = AsyncTemplate().from_base_image().run_cmd("echo async > ~/made")
    info = await AsyncTemplate.build_in_background(template, "later")
    while (found := await AsyncTemplate.get_build_status(info)).status.value in ("building", "waiting"):
        await asyncio.sleep(0.05)
    assert found.status.value == "ready" and any("RUN echo async" in one.message for one in found.log_entries)
    sandbox = await AsyncSandbox.create("later", timeout=60)
    assert (await sandbox.commands.run("cat made")).stdout == "async\n"
    assert await sandbox.kill()


if __name__ == "__main__":
    finish(sync, asynchronous)
