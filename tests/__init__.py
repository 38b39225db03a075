"""Tests; the examples that they run are imported as scripts import one another."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
