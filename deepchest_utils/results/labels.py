"""Label, family and colour of each method, in the order of every legend and table. Nothing here draws."""

from collections.abc import Iterable
from typing import Any

from deepchest_utils.config import parse_method, split_spec

# Okabe and Ito's colours can be told apart with every form of colour blindness, and in grey
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F", "#000000",
)  # fmt: skip
WINE = "#882255"  # from Tol's muted colours; dark enough to differ from the eight above
SIGNAL_STYLE = {  # signal of DeepChest's update -> (label, colour)
    "accuracy": ("accuracy", VERMILION), "loss_trend": ("loss trend", PURPLE), "relative_loss": ("L/H", BLUE),
    "auroc": ("AUROC", GREEN), "balanced_accuracy": ("balanced accuracy", ORANGE),
}  # fmt: skip
FAMILY_STYLE = {  # family -> (label, colour, marker): grey and green are one colour to a deuteranope
    "fixed": ("fixed weights", GREY, "s"), "deepchest": ("DeepChest's rule", VERMILION, "D"),
    "control": ("prevalence oracle", BLACK, "P"), "candidate": ("candidates of notebook 07", WINE, "h"),
    "loss": ("loss weighting", BLUE, "o"), "gradient": ("gradient balancing", GREEN, "^"),
    "composed": ("DeepChest over another", PURPLE, "v"), "architecture": ("other architectures", ORANGE, "X"),
}  # fmt: skip
_LABELS = {  # family -> method -> label
    "fixed": {
        "equal": "Equal", "static": "Static", "inverse_prevalence": "Inverse prevalence", "inverse_entropy": "1/H",
        "inverse_sqrt_entropy": "1/sqrt(H)",
    },
    "deepchest": {
        "deepchest": "DeepChest",
        **{f"deepchest_{s}": f"DeepChest ({label})" for s, (label, _) in SIGNAL_STYLE.items() if s != "accuracy"},
    },
    "control": {"prevalence_oracle": "Prevalence oracle"},
    "candidate": {"hedge": "Hedge (L/H)", "val_discount": "Validation discount", "anneal": "Anneal"},
    "loss": {
        "uncertainty": "Uncertainty", "dwa": "DWA", "rlw": "RLW", "gls": "GLS", "imtl_l": "IMTL-L", "stch": "STCH",
        "famo": "FAMO", "dbmtl_l": "DB-MTL (loss)", "dtp": "DTP", "amtl": "AMTL", "uw_so": "UW-SO", "ldc_mtl": "LDC-MTL",
        "slaw": "SLAW", "lbtw": "LBTW", "igb": "IGB",
    },
    "gradient": {
        "gradnorm": "GradNorm", "mgda": "MGDA", "pcgrad": "PCGrad", "graddrop": "GradDrop", "gradvac": "GradVac",
        "cagrad": "CAGrad", "imtl_g": "IMTL-G", "nash_mtl": "Nash-MTL", "aligned_mtl": "Aligned-MTL",
        "fairgrad": "FairGrad", "config": "ConFIG", "dualproj": "DualProj", "upgrad": "UPGrad", "rgw": "RGW",
        "excess_mtl": "ExcessMTL",
    },
}  # fmt: skip
METHOD_LABELS = {name: label for labels in _LABELS.values() for name, label in labels.items()}
_FAMILIES = {name: family for family, labels in _LABELS.items() for name in labels}
_METHOD_COLORS = {"static": SKY, "inverse_sqrt_entropy": SKY}  # Equal and 1/H are grey
_METHOD_COLORS |= {f"deepchest_{signal}": color for signal, (_, color) in SIGNAL_STYLE.items()}
_OPTIONS = {"level": "", "eta": "rate", "window 1": "last loss", "normalize True": "normalised", "relative True": "L/H"}
MAX_NAME = 200  # characters of a method in a table or a figure


def pretty(finding: str) -> str:
    """The finding's name with spaces, for a figure."""
    return finding.replace("_", " ")


def _parse(spec: str) -> tuple[list[str], dict[str, Any], str, str]:
    """Names, options, architecture and loss; a name of one's own may read otherwise, as my-rule, and is taken as it is."""
    method, architecture, loss = split_spec(spec)
    try:
        names, options = parse_method(method)
    except ValueError:
        return [method], {}, architecture, loss
    return names.split("+"), options, architecture, loss


def method_label(spec: str) -> str:
    """The label, for a figure, of a method as sweeps name it.

    `deepchest(floor=0.25)+pcgrad(level="features")` gives "DeepChest (floor 0.25) + PCGrad (features)", and
    `equal@single_task@focal(gamma=3)` gives "Equal, single-task, focal (gamma 3)".
    """
    names, options, architecture, loss = _parse(spec)
    terms = []
    for name in names:
        own_options = {key: value for key, value in options.items() if key != "inner_options"}
        options = options.get("inner_options", {})
        terms.append(METHOD_LABELS.get(name, name) + _details(own_options))
    label = " + ".join(terms) + (f", {architecture.replace('_', '-')}" if architecture else "")
    if loss:
        name, options = parse_method(loss)
        label += f", {name.replace('_', ' ')}{_details(options)}"
    return "".join(filter(str.isprintable, label))[:MAX_NAME]


def _details(options: dict[str, Any]) -> str:
    words = []
    for key, value in options.items():
        text = "given" if isinstance(value, list | tuple) else str(value).removesuffix(".0")
        words.append(_OPTIONS.get(f"{key} {text}") or f"{_OPTIONS.get(key, key.replace('_', ' '))} {text}".strip())
    return f" ({', '.join(words)})" if words else ""


def method_family(spec: str) -> str:
    """The method's key of FAMILY_STYLE; an unknown method counts as loss weighting."""
    names, _, architecture, _ = _parse(spec)
    if architecture:
        return "architecture"
    return "composed" if len(names) > 1 else _FAMILIES.get(names[0], "loss")


def family_color(spec: str) -> str:
    """The colour of the method's family."""
    return FAMILY_STYLE[method_family(spec)][1]


def family_marker(spec: str) -> str:
    """The marker of the method's family, for matplotlib."""
    return FAMILY_STYLE[method_family(spec)][2]


def method_color(spec: str) -> str:
    """The method's own colour, for figures that draw a few methods as lines, else that of its family."""
    return _METHOD_COLORS.get(spec.partition("(")[0], family_color(spec))


def method_order(specs: Iterable[str]) -> list[str]:
    """The methods in the order of every table: family by family, then compositions, then other architectures."""
    positions = {name: position for position, name in enumerate(METHOD_LABELS)}

    def key(spec: str) -> tuple[bool, int, list[int], str]:
        names, _, architecture, _ = _parse(spec)
        return architecture != "", len(names), [positions.get(name, len(positions)) for name in names], spec

    return sorted(specs, key=key)
