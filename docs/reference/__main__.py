"""Write the references docs/api.md, docs/settings.md and docs/metrics.md from the code; nothing in them is by hand.

    python -m docs.reference
    python -m docs.reference --out elsewhere

The examples are really answered, by the model that ships, in this process. The last line is JSON: which files are new.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cat_serve.commands import run_command
from cat_serve.files import write_text


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.reference", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder (docs)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the pages."""
    arguments = build_parser().parse_args(argv)
    return run_command(lambda: write(asyncio.run(pages()), arguments.out), extra="cpu,dev")


def write(texts: Mapping[str, str], out: Path) -> dict[str, Any]:
    """Write the pages that changed, and name them."""
    changed = []
    for name, text in texts.items():
        path = out / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            changed.append(name)
    return {"out": str(out), "changed": changed}


async def pages() -> dict[str, str]:
    """Return every page by its name."""
    from docs.reference.examples import clients, examples, shown
    from docs.reference.operators import metrics_page, settings_page
    from docs.reference.routes import api_page

    async with clients() as (client, admin, app):
        service = app.state.service
        every = examples(next(iter(service.models.values())).artefact.version)
        blocks = {each: await shown(each, admin if each.admin else client) for each in every}
        return {
            "api.md": api_page(app.openapi(), blocks),
            "settings.md": settings_page(),
            "metrics.md": metrics_page(service.metrics.registry),
        }


if __name__ == "__main__":
    sys.exit(main())
