"""Put on a test's PYTHONPATH, this gives every process of a run what only tests have, to hold it.

The model `gated` counts the micro-batches of an attempt; the strategies `gated` and `gatedfsdp` hold a run of any model
at a step, whatever attempts it takes to get there (`tests.testbed.gate`).
"""

from pathlib import Path

import fgtrain.models
import fgtrain.strategies

fgtrain.models.__path__.append(str(Path(__file__).parent / "models"))
fgtrain.strategies.__path__.append(str(Path(__file__).parent / "strategies"))
