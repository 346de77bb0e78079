"""What an installation needs, said in one line each before and after it; `make` calls this file.

It is run by the Python that is to be installed for, which may be older than the package's and has none of its packages:
the standard library alone, and no syntax younger than Python 3.6.
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
    "install a compiler (Debian, Ubuntu: apt install build-essential python3-dev; macOS: xcode-select --install), "
    "or take Python 3.11 or 3.12, for which every package comes compiled"
)
NETWORK = "no package index can be reached: is there a network, or a proxy to set?"
CAUSES = (  # what pip prints, and what to do about it
    (r"No space left on device|Disk quota exceeded", "the disk is full: free some, or set TMPDIR and PIP_CACHE_DIR to a larger one"),
    (r"Python\.h: No such file", "a package has to be compiled, and Python's headers are missing: " + COMPILER),
    (r"command '\S*(cc|clang|\+\+)\S*' failed|unable to execute '\S*(cc|clang|\+\+)|No such file or directory: '\S*(cc|clang)'",
     "a package has to be compiled, and the C compiler is missing or failed: " + COMPILER),
    (r"[Tt]emporary failure in name resolution|Connection refused|Network is unreachable|ProxyError|ConnectTimeout", NETWORK),
    (r"No matching distribution found for (\S+)", "there is no release of {0} for this Python or system: make PYTHON=python3.12"),
)  # fmt: skip


def before(folder: str, cpu_only: bool = False) -> "list[str]":
    """What stands in the way of an installation in `folder`, a line each; none: an empty list."""
    name = os.path.basename(sys.executable)
    found = []
    if sys.version_info < (3, 11):  # noqa: UP036 (an older Python may run this file)
        version = ".".join(map(str, sys.version_info[:3]))
        found.append(f"Python 3.11 or newer is needed, {name} is {version}: make PYTHON=python3.12")
    elif importlib.util.find_spec("ensurepip") is None:
        found.append(f"{name} cannot make environments: apt install python3-venv, or make PYTHON=another")
    free, needed = shutil.disk_usage(folder).free / 1e9, DISK_CPU if cpu_only else DISK
    if free < needed:
        less = "" if cpu_only else "; with TORCH_INDEX, see README, less is enough"
        found.append(f"{needed:g} GB of disk are needed in {os.path.abspath(folder)}, {free:.1f} are free{less}")
    return found


def cause(log: str) -> str:
    """What pip's output says went wrong, in one line; its last line if that is nothing known."""
    for sign, advice in CAUSES:
        found = re.search(sign, log)
        if found:
            return advice.format(*found.groups())
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


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


def main(arguments: "list[str]") -> int:
    """before FOLDER [cpu] | cause LOG | device: exit status 1 if an installation cannot go on."""
    what, rest = arguments[0], arguments[1:]
    if what == "before":
        problems = before(rest[0], "cpu" in rest[1:])
        sys.stdout.write("".join(line + "\n" for line in problems))
        return int(bool(problems))
    if what == "cause":
        with open(rest[0], errors="replace") as file:
            sys.stdout.write("pip failed: " + cause(file.read()) + "\n  all that it said: " + rest[0] + "\n")
        return 1
    sys.stdout.write(device() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
