"""What the native extension offers to Python."""

from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    torch: str
    cuda: bool

def build_info() -> BuildInfo: ...
def cpu_capability() -> str: ...
