"""What every `python -m` command of this project does with its work: report, errors, exit code."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from cat_serve.errors import CatServeError, InvalidInput, MissingDependency

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130

ANOTHER_PLACE = "give a place where this user may write"
# What a path given by the user, or a full disk, leads to; any other error of the system is a bug, and keeps its traceback.
HINTS_OF_PLACES = {
    errno.ENOSPC: "make room and run this again", errno.EDQUOT: "make room and run this again",
    errno.EACCES: ANOTHER_PLACE, errno.EPERM: ANOTHER_PLACE, errno.EROFS: ANOTHER_PLACE,
    errno.ENOENT: None, errno.ENOTDIR: None, errno.EISDIR: None, errno.EEXIST: None, errno.ENAMETOOLONG: None,
}  # fmt: skip


def explain_failure(error: CatServeError) -> int:
    """Print an error for people and return the exit code that it stands for."""
    print(f"error: {error}", file=sys.stderr)
    return USAGE if isinstance(error, InvalidInput | MissingDependency) else FAILED


def explain_place(error: OSError) -> int:
    """Print an error of the file system for people and return its exit code.

    Raises:
        OSError: it is none; the error itself.
    """
    if error.errno not in HINTS_OF_PLACES:
        raise error
    where = "" if error.filename is None else f"{error.filename}: "
    hint = HINTS_OF_PLACES[error.errno]
    print(f"error: {where}{error.strerror}." + (f"\n  hint: {hint}" if hint else ""), file=sys.stderr)  # fmt: skip
    return USAGE


def run_command(work: Callable[[], Mapping[str, Any]], extra: str, *, resumes: bool = True) -> int:
    """Do the work and print what it returns as one line of JSON on stdout.

    Args:
        work: returns the report; one with `passed` false is of a check that failed.
        extra: the optional dependencies that the command needs, as in `pip install 'cat-serve[extra]'`.
        resumes: whether the same command goes on from where it was interrupted.

    Returns:
        0; 1 if something failed, or a check did; 2 for wrong arguments or something this machine lacks; 130 if interrupted.
        An error is one line on stderr, with its hint on the next; also a path that cannot be written, or a full disk.
    """
    try:
        report = work()
    except ImportError as error:
        hint = f"pip install 'cat-serve[{extra}]'"
        print(f"error: This command needs {error.name}.\n  hint: {hint}", file=sys.stderr)
        return USAGE
    except CatServeError as error:
        return explain_failure(error)
    except OSError as error:
        return explain_place(error)
    except KeyboardInterrupt:
        more = "; the same command goes on from where it was" if resumes else ""
        print(f"interrupted{more}", file=sys.stderr)
        return INTERRUPTED
    print(json.dumps(report))
    return OK if report.get("passed", True) else FAILED
