"""Each method's label, family and colour, in the order of every legend and table: one place for all figures."""

from collections.abc import Iterable

from deepchest_utils.weighting.spec import parse_method

# Okabe and Ito's colours, told apart in every form of colour blindness, and in grey
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F", "#000000",
)  # fmt: skip
WINE = "#882255"  # of Tol's muted colours: dark enough to stand apart from the eight
SIGNAL_STYLE = {  # what drives DeepChest's update: (label, colour)
    "accuracy": ("accuracy", VERMILION),
    "loss_trend": ("loss trend", PURPLE),
    "relative_loss": ("L/H", BLUE),
    "auroc": ("AUROC", GREEN),
    "balanced_accuracy": ("balanced accuracy", ORANGE),
}
FAMILY_STYLE = {  # (label, colour): of figures with all methods, too many for a colour each
    "fixed": ("fixed weights", GREY),
    "deepchest": ("DeepChest's rule", VERMILION),
    "control": ("prevalence oracle", BLACK),
    "candidate": ("candidates of notebook 07", WINE),
    "loss": ("loss weighting", BLUE),
    "gradient": ("gradient balancing", GREEN),
    "composed": ("DeepChest over another", PURPLE),
    "architecture": ("other architectures", ORANGE),
}
_LABELS = {
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
        "famo": "FAMO", "dbmtl_l": "DB-MTL (loss)",
    },
    "gradient": {
        "gradnorm": "GradNorm", "mgda": "MGDA", "pcgrad": "PCGrad", "graddrop": "GradDrop", "gradvac": "GradVac",
        "cagrad": "CAGrad", "imtl_g": "IMTL-G", "nash_mtl": "Nash-MTL", "aligned_mtl": "Aligned-MTL",
        "fairgrad": "FairGrad", "config": "ConFIG", "dualproj": "DualProj", "upgrad": "UPGrad", "rgw": "RGW",
    },
}  # fmt: skip
METHOD_LABELS = {name: label for names in _LABELS.values() for name, label in names.items()}
_FAMILIES = {name: family for family, names in _LABELS.items() for name in names}
_OWN_COLOR = {  # of figures that draw a few methods as lines
    "static": SKY,
    **{f"deepchest_{signal}": color for signal, (_, color) in SIGNAL_STYLE.items() if signal != "accuracy"},
}


def pretty(finding: str) -> str:
    """The finding's name for a figure."""
    return finding.replace("_", " ")


def method_label(spec: str) -> str:
    """For a figure, of a method as sweeps name it: `deepchest(floor=0.25)+pcgrad(level="features")` is
    "DeepChest (floor 0.25) + PCGrad (features)", `equal@single_task` is "Equal, single-task"."""
    method, _, architecture = spec.partition("@")
    name, options = parse_method(method)
    words = []
    for part in name.split("+"):
        own = {k: v for k, v in options.items() if k != "inner_options"}
        options = options.get("inner_options", {})
        shown = ", ".join(v if k == "level" else f"{k.replace('_', ' ')} {_short(v)}" for k, v in own.items())
        words.append(METHOD_LABELS.get(part, part) + (f" ({shown})" if shown else ""))
    return " + ".join(words) + (f", {architecture.replace('_', '-')}" if architecture else "")


def _short(value: object) -> str:
    return "given" if isinstance(value, list | tuple) else str(value)


def method_family(spec: str) -> str:
    """A key of FAMILY_STYLE; a name that no list has counts as loss weighting."""
    name, _ = parse_method(spec.partition("@")[0])
    if "@" in spec:
        return "architecture"
    return "composed" if "+" in name else _FAMILIES.get(name, "loss")


def family_color(spec: str) -> str:
    return FAMILY_STYLE[method_family(spec)][1]


def method_color(spec: str) -> str:
    """The method's own colour if it has one, else its family's."""
    return _OWN_COLOR.get(spec.partition("(")[0], family_color(spec))


def method_order(specs: Iterable[str]) -> list[str]:
    """As every table has them: families as above, compositions last."""
    places = {name: place for place, name in enumerate(METHOD_LABELS)}

    def place(spec: str) -> tuple[bool, int, list[int], str]:
        parts = parse_method(spec.partition("@")[0])[0].split("+")
        return "@" in spec, len(parts), [places.get(part, len(places)) for part in parts], spec

    return sorted(specs, key=place)
