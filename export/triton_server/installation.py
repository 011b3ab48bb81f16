"""Where a Triton server is, and what it needs around it: the CPU server of the checkout, or any other."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from cat_serve.errors import MissingDependency

CPU_HOME = Path(__file__).parent.parent.parent / ".triton"
HINT = "make .triton/installed, or give --tritonserver (in NVIDIA's container: /opt/tritonserver/bin/tritonserver)"


@dataclass(frozen=True)
class Installation:
    """Where a server is and what it needs around it.

    Attributes:
        binary: the `tritonserver` executable.
        arguments: what it must be told about its own folders.
        environment: variables that differ from ours.
    """

    binary: Path
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def find_installation(binary: Path | None = None, home: Path = CPU_HOME) -> Installation:
    """Return the server to run: `binary`, else the CPU server in `home`, else the one on PATH.

    Raises:
        MissingDependency: there is none.
    """
    root = home / "server" / "pytriton" / "tritonserver"
    cpu = root / "bin" / "tritonserver"
    if binary is None and cpu.is_file():
        folders = (f"--backend-directory={root}/backends", f"--cache-directory={root}/caches")
        # The python backend takes its packages from the first python3 on PATH, and may embed another libpython.
        path = f"{home / 'env' / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        libraries = str(sysconfig.get_config_var("LIBDIR"))
        return Installation(cpu, folders, {"PATH": path, "LD_LIBRARY_PATH": libraries})
    found = shutil.which(str(binary or "tritonserver"))
    if found is None:
        raise MissingDependency(f"There is no {binary or 'tritonserver'} here.", hint=HINT)
    return Installation(Path(found))
