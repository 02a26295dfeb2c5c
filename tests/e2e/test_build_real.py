"""A real Dockerfile of several stages that installs packages with apt and pip. Opt-in, for it takes a minute and a
network: JOEY_BUILD_REAL=1, and where pip needs a configuration, JOEY_BUILD_PIP_CONF=FILE.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.may_skip("fetches packages from the network: JOEY_BUILD_REAL=1 says that it may"),
    pytest.mark.skipif(not os.environ.get("JOEY_BUILD_REAL"), reason="JOEY_BUILD_REAL is not set"),
]
JOEY = Path(sys.executable).parent / "joey"
DOCKERFILE = r"""# syntax=docker/dockerfile:1
FROM debian:12 AS build
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends python3-venv gcc libc6-dev ca-certificates
RUN <<EOF
set -e
printf '#include <stdio.h>\nint main(){puts("built");}\n' > /hello.c
gcc -O2 -o /usr/local/bin/hello /hello.c
python3 -m venv /venv
EOF
COPY requirements.txt /tmp/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    /venv/bin/pip install -r /tmp/requirements.txt

FROM debian:12
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home --uid 1000 app
COPY --from=build /venv /venv
COPY --from=build /usr/local/bin/hello /usr/local/bin/
WORKDIR /app
COPY --chown=app:app main.py .
USER app
ENV PATH=/venv/bin:$PATH
RUN hello && python main.py
ENTRYPOINT ["python", "main.py"]
"""


def joey(*words):
    done = subprocess.run([JOEY, *map(str, words)], capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_apt_and_pip(joey_home, tmp_path):
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "requirements.txt").write_text("requests\n")
    (tmp_path / "main.py").write_text("import requests, os\nprint('requests', os.getuid())\n")
    secrets = ["--secret", "id=certificates,src=/etc/ssl/certs/ca-certificates.crt"]
    if path := os.environ.get("JOEY_BUILD_PIP_CONF"):
        secrets += ["--secret", f"id=pip,src={path}"]
    try:
        joey("image", "bootstrap", "-q", "debian:12")
        first = joey("build", "-q", "-t", "real:1", *secrets, tmp_path)
        assert joey("run", "--rm", "real:1") == "requests 1000\n"
        assert joey("build", "-q", *secrets, tmp_path) == first
    finally:
        joey("system", "reset", "-f")
