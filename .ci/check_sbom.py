"""Hold an SBOM of the serving environment to what is promised of it, and list the licences.

    python .ci/check_sbom.py build/sbom.cdx.json

Every component has a name, a version, a package URL and a licence; the serving environment has no training framework.
The last line of stdout is JSON; the list goes to stderr.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

HEAVY = {"torch", "onnx", "onnxscript", "tensorrt", "diffusers", "matplotlib", "torchmetrics"}
NEEDED = {"fastapi", "numpy", "onnxruntime", "pillow", "uvicorn"}
# of packages whose metadata name none; it is that of the LICENSE file in them
LICENCES_ELSEWHERE = {"protobuf": "BSD-3-Clause"}


def licences(component: dict[str, Any]) -> list[str]:
    """Return the licences of a component: SPDX expressions, identifiers or names."""
    found = []
    for entry in component.get("licenses", ()):
        licence = entry.get("license", {})
        named = entry.get("expression") or licence.get("id") or licence.get("name")
        if named:
            found.append(str(named).splitlines()[0][:60])
    elsewhere = LICENCES_ELSEWHERE.get(component["name"].lower())
    return found or ([elsewhere] if elsewhere else [])


def complaints(components: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with a list of components."""
    names = {component["name"].lower() for component in components}
    wrong = [f"{name} is in it, which serving does not need" for name in sorted(HEAVY & names)]
    wrong += [f"{name} is not in it" for name in sorted(NEEDED - names)]
    for component in components:
        lacking = [field for field in ("version", "purl") if not component.get(field)]
        lacking += [] if licences(component) else ["licence"]
        wrong += [f"{component['name']} has no {field}" for field in lacking]
    return wrong


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    components = json.loads(Path(argv[0]).read_text(encoding="utf-8")).get("components", [])
    by_licence: dict[str, list[str]] = defaultdict(list)
    for component in components:
        for licence in licences(component) or ["none"]:
            by_licence[licence].append(f"{component['name']} {component.get('version', '')}")
    for licence, names in sorted(by_licence.items()):
        print(f"{licence}: {', '.join(sorted(names))}", file=sys.stderr)
    wrong = complaints(components)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    print(json.dumps({"passed": not wrong, "components": len(components), "licences": len(by_licence)}))  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
