"""Which processor this is: its name, and what tells it from another one of that name."""

import platform
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path


def processor_name() -> str:
    """Return the name that the processor gives itself, where the system lists it (Linux does)."""
    return _name(_listed())


def processor_key() -> str:
    """Return the name with a digest of its instructions, where the system lists those.

    A virtual machine's name may say little: one and the same has bf16 units here and none there.
    """
    listed = _listed()
    if not listed:
        return _name(listed)
    instructions = " ".join(sorted((listed.get("flags") or listed.get("Features") or "").split()))
    digest = sha256(f"{listed.get('CPU part')} {instructions}".encode()).hexdigest()[:12]
    return f"{_name(listed)} {digest}"


def _name(listed: Mapping[str, str]) -> str:
    return listed.get("model name") or platform.processor() or platform.machine()


def _listed() -> dict[str, str]:
    """Return what Linux says of the first processor; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
