# An extra: examples are checked without it. Nothing is said of its types.
from typing import Any

def __getattr__(name: str) -> Any: ...
