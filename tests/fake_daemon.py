"""The engine's process around the fake engine: everything of joey.api.daemon but the engine itself."""

import sys

from joey.api import daemon
from joey.testing.engine import FakeEngine

daemon.make_engine = lambda instance: FakeEngine()
sys.exit(daemon.main())
