"""What an installation needs, said in one line each before and after it; `make` calls this file.

The Python that is to be installed for runs it: it may be older than the package's and has none of its packages. So this
file needs the standard library alone, and no syntax younger than Python 3.6.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

DISK = 7.5  # GB, with PyTorch's CUDA libraries; 6.7 when measured
DISK_CPU = 3.0  # GB, with a PyTorch for CPUs alone
COMPILER = (
    "a package has to be compiled, and a compiler or Python's headers are missing: install them (Debian, Ubuntu: apt install "
    "build-essential python3-dev; macOS: xcode-select --install), or take Python 3.11 or 3.12, for which every package comes compiled"
)
CAUSES = (  # what pip prints, and what to do about it
    (r"No space left on device|Disk quota exceeded", "the disk is full: free some, or set TMPDIR and PIP_CACHE_DIR to a larger one"),
    (r"Python\.h: No such file|(?:command|execute|directory:) '\S*(?:cc|clang|\+\+)\S*'", COMPILER),
    (r"[Tt]emporary failure in name resolution|Connection refused|Network is unreachable|ProxyError|ConnectTimeout",
     "no package index can be reached: is there a network, or a proxy to set?"),
    (r"ResolutionImpossible|No matching distribution found for \S+==",
     "the versions of constraints.txt are not all there for this Python or system: make PYTHON=python3.11, or make CONSTRAINTS= for the newest"),
    (r"No matching distribution found for (\S+)", "there is no release of {0} for this Python or system: make PYTHON=python3.11"),
)  # fmt: skip


def before(folder: str, cpu_only: bool = False) -> "list[str]":
    """What stands in the way of an installation in `folder`, a line each."""
    name, problems = os.path.basename(sys.executable), []
    if sys.version_info < (3, 11):  # noqa: UP036 (an older Python may run this file)
        version = ".".join(map(str, sys.version_info[:3]))
        problems.append(f"Python 3.11 or newer is needed, {name} is {version}: make PYTHON=python3.12")
    elif importlib.util.find_spec("ensurepip") is None:
        problems.append(f"{name} cannot make environments: apt install python3-venv, or make PYTHON=another")
    free, needed = shutil.disk_usage(folder).free / 1e9, DISK_CPU if cpu_only else DISK
    if free < needed:
        less = "" if cpu_only else "; with TORCH_INDEX, see README, less is enough"
        problems.append(f"{needed:g} GB of disk are needed in {os.path.abspath(folder)}, {free:.1f} are free{less}")
    return problems


def cause(log: str) -> str:
    """What pip's output says went wrong, in one line; its last line if the cause is not known."""
    for pattern, advice in CAUSES:
        match = re.search(pattern, log)
        if match:
            return advice.format(*match.groups())
    return ([line.strip() for line in log.splitlines() if line.strip()] or ["it said nothing"])[-1]


def device() -> str:
    """Which device `auto` will take, and why not a GPU that is there. Needs torch."""
    import torch

    if torch.cuda.is_available():
        return f"Networks are trained on {torch.cuda.get_device_name(0)}."
    if shutil.which("nvidia-smi") is None:
        return "No NVIDIA driver here: networks are trained on the CPU, for which the notebooks are made."
    listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if not listed.stdout.startswith(b"GPU"):
        return "An NVIDIA driver, but no GPU here: networks are trained on the CPU."
    built = torch.version.cuda
    why = "this PyTorch is for CPUs" if built is None else "the driver is too old for its CUDA " + built
    return f"There is a GPU, but PyTorch cannot use it ({why}): networks are trained on the CPU."


if __name__ == "__main__":  # before FOLDER [cpu] | cause LOG | device: status 1 if an installation cannot go on
    if sys.argv[1] == "before":
        lines = before(sys.argv[2], "cpu" in sys.argv[3:])
    elif sys.argv[1] == "cause":
        with open(sys.argv[2], errors="replace") as file:
            lines = ["pip failed: " + cause(file.read()), "  all that it said: " + sys.argv[2]]
    else:
        lines = [device()]
    sys.stdout.write("".join(line + "\n" for line in lines))
    sys.exit(sys.argv[1] != "device" and bool(lines))
