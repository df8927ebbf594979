"""Put on a test's PYTHONPATH, this gives every process of a run a model family that only tests have: `gated`."""

from pathlib import Path

import fgtrain.models

fgtrain.models.__path__.append(str(Path(__file__).parent / "models"))
