"""Write the golden files anew: `python -m tests.golden`, or `scripts/golden`."""

from __future__ import annotations

from tests.golden import GOLDEN, golden_file, recipe_files, rendered

for stale in set(GOLDEN.glob("*.json")) - {golden_file(r) for r in recipe_files()}:
    stale.unlink()
for recipe in recipe_files():
    golden_file(recipe).write_text(rendered(recipe), encoding="utf-8")
    print(golden_file(recipe).name)
