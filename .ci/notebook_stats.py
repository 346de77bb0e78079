"""How notebooks read: words, long sentences, code, plotting code and folded cells, of the tree or beside another commit.

python .ci/notebook_stats.py            the notebooks as they are
python .ci/notebook_stats.py COMMIT     before (in COMMIT) and after (now)
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONG = 35  # words of a sentence
COLUMNS = ("words", f"sentences over {LONG}", "code lines", "plotting lines", "code cells", "of them folded")
NAME = re.compile(r"notebooks/(appendix/)?[0-9A][0-9]_\w+\.ipynb")
DRAWS = re.compile(r"\b(ax|axes|fig|figure|plt|sns|left|right|grid)(\[.*?\])?\.\w+\(|\bsubplots\(")


def sentences(text: str) -> list[str]:
    """Sentences of a Markdown cell; an item of a list is one at least, and headings, tables and code are none."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$", " ", text, flags=re.DOTALL)
    prose = [line for line in text.splitlines() if not line.lstrip().startswith(("#", "|"))]
    paragraphs = re.split(r"\n\s*\n|(?:^|\n)\s*(?:[-*]|\d+\.) ", "\n".join(prose))
    return [s for paragraph in paragraphs for s in re.split(r"(?<=[.?!])[\"')*]*\s+(?=[\"'(*A-Z$\[`])", paragraph) if s]


def measure(notebook: dict) -> tuple[int, ...]:
    """COLUMNS of one notebook."""
    cells = [(cell["cell_type"], "".join(cell["source"]), cell["metadata"]) for cell in notebook["cells"]]
    texts = [source for kind, source, _ in cells if kind == "markdown"]
    code = [(source, metadata) for kind, source, metadata in cells if kind == "code"]
    lines = [line for source, _ in code for line in source.splitlines() if line.strip()]
    return (
        sum(len(text.split()) for text in texts),
        sum(len(sentence.split()) > LONG for text in texts for sentence in sentences(text)),
        len(lines),
        sum(bool(DRAWS.search(line)) for line in lines),
        len(code),
        sum(bool(metadata.get("jupyter", {}).get("source_hidden")) for _, metadata in code),
    )


def in_tree() -> dict[str, tuple[int, ...]]:
    """Notebook -> its measures, now."""
    found = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "notebooks").rglob("*.ipynb")}
    return {
        name: measure(json.loads(path.read_text(encoding="utf-8")))
        for name, path in sorted(found.items())
        if NAME.fullmatch(name)
    }


def in_commit(commit: str) -> dict[str, tuple[int, ...]]:
    """Notebook -> its measures, in a commit."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    names = filter(NAME.fullmatch, git("ls-tree", "-r", "--name-only", commit, "notebooks").splitlines())
    return {name: measure(json.loads(git("show", f"{commit}:{name}"))) for name in names}


def table(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]], compared: bool) -> str:
    """A row a notebook, and the sum."""
    names = sorted({**before, **after})
    rows = [["", *COLUMNS]]
    for name in [*names, "all"]:
        cells = []
        for i in range(len(COLUMNS)):
            old, new = (
                (sum(row[i] for row in side.values()) if name == "all" else side[name][i])
                if name in {*side, "all"}
                else "-"
                for side in (before, after)
            )
            cells.append(f"{old} -> {new}" if compared else str(new))
        rows.append([name.removeprefix("notebooks/").removesuffix(".ipynb"), *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS) + 1)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    commit = sys.argv[1] if sys.argv[1:] else None
    try:
        print(table(in_commit(commit) if commit else {}, in_tree(), commit is not None))
    except subprocess.CalledProcessError as error:
        sys.exit(f"git knows no notebooks of {commit!r}: {error.stderr.strip()}")
