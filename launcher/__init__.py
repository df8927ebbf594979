"""The laptop side: load a recipe, plan it, run it, supervise it. Never imports torch."""
