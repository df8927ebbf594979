"""The GPU side: recipes, plans and stores (light, no torch) and the training loop (heavy)."""

__version__ = "0.1.0"
