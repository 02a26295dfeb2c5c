"""The C programs of Joey: where the compiled executables are.

`pip install` puts them into `joey/native/bin`; how they are built is in `build.py`, what they do in the C files here.
"""

from pathlib import Path

BIN = Path(__file__).parent / "bin"


def binary(name: str) -> Path:
    """Path of the compiled executable `name`, for example `joey-launcher`.

    Raises FileNotFoundError, saying how to build it, if it is not there.
    """
    path = BIN / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: this program is not built; run `pip install .` again (needs a C compiler),"
            " or `./dev setup` in a checkout"
        )
    return path


__all__ = ["BIN", "binary"]
