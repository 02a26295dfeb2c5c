"""Builds the C programs (what and how: src/joey/native/build.py) and puts them into joey/native/bin of the wheel.

Everything else about the package stands in pyproject.toml.
"""

import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
SOURCE = ROOT / "src"
sys.path.insert(0, str(SOURCE))

from joey.native import build as native  # noqa: E402


class BuildNative(Command):
    """Compile and link the executables: into the build tree, or in place for an editable installation."""

    description = "compile and link Joey's C programs"
    user_options = [("build-lib=", None, "directory of the build tree")]  # noqa: RUF012
    editable_mode = False

    def initialize_options(self):
        self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self):
        base = SOURCE if self.editable_mode else Path(self.build_lib)
        try:
            # A checkout may be half-way; what is installed has to be whole.
            native.build_all(base / "joey/native/bin", skip_missing=self.editable_mode)
        except native.BuildError as error:
            raise SystemExit(f"error: {error}") from None

    def get_source_files(self):
        folder = native.HERE
        return [str(path.relative_to(ROOT)) for path in sorted((*folder.glob("*.c"), *folder.glob("*.h")))]

    def get_outputs(self):
        return [str(Path(self.build_lib) / "joey/native/bin" / program.name) for program in native.PROGRAMS]

    def get_output_mapping(self):
        return {}


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]  # noqa: RUF012


class Wheel(bdist_wheel):
    """The wheel holds executables, not extension modules: any Python, this platform."""

    def get_tag(self):
        _python, _abi, platform = super().get_tag()
        return "py3", "none", platform


class PlatformDistribution(Distribution):
    def has_ext_modules(self):
        return True


setup(
    distclass=PlatformDistribution,
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Wheel},
)
