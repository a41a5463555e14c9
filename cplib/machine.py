"""Where a result came from: device, torch, commit, memory. No result depends on it."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import torch


def facts(device: torch.device) -> dict[str, str | int]:
    """What a run notes beside its numbers: device, torch, commit ("" without git), peak_memory_mib."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    info = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    model = info.partition("model name")[2].partition("\n")[0].strip("\t: ") or platform.machine()
    name = f"{model}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name, peak = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
    describe = "git describe --always --dirty --abbrev=12"  # by a shell: it says nothing where there is no git
    git = subprocess.run(describe, shell=True, cwd=Path(__file__).parent, capture_output=True, text=True)
    return {"device": name, "torch": torch.__version__, "commit": git.stdout.strip(), "peak_memory_mib": peak >> 20}
