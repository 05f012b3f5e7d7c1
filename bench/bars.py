"""All bars that the benchmarks' results hold, in one table: what was reached, and what was asked for.

python bench/bars.py
"""

from __future__ import annotations

import json
from typing import Any

from measure import RESULTS, Bar


def main() -> None:
    for path in sorted(RESULTS.glob("*.json")):
        found: list[dict[str, Any]] = json.loads(path.read_text()).get("bars", [])
        print(f"\n{path.stem}" if found else f"\n{path.stem}: no bars")
        for bar in (Bar(**values) for values in found):
            spread = f"  ({bar.spread[0]:.3g} to {bar.spread[1]:.3g})" if bar.spread else ""
            limit = f"at {'least' if bar.at_least else 'most'} {bar.bar:g}"
            reached = "reached" if bar.reached else "NOT reached"
            print(f"  {bar.what:<74}{bar.figure:>9.3g}  {limit:<15}{bar.unit:<7}{reached}{spread}")


if __name__ == "__main__":
    main()
