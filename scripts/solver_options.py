"""Write configs/solver/NAME.yaml for each method in ``METHODS``: python scripts/solver_options.py

A file keeps its first line, the comment that `odebench list solvers` prints, and its further defaults. The comment of a
new file is the source of the method.
"""

from pathlib import Path

from odebench.ode.methods import METHODS, Method

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "solver"
FIXED_BY_DEFAULT = {"implicit_euler"}  # although it estimates its error


def option_text(name: str, method: Method, text: str = "") -> str:
    """The new text of a method's file. text: the present text, if there is a file."""
    comment, _, _, *defaults = text.splitlines() or [f"# {method.source}", "", ""]
    kind = "_adaptive" if method.adaptive and name not in FIXED_BY_DEFAULT else "_fixed"
    return "\n".join([comment, f"defaults: [{kind}]", f"name: {name}", *defaults, ""])


def main() -> None:
    """Write all files."""
    for name, method in METHODS.items():
        path = FOLDER / f"{name}.yaml"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(option_text(name, method, text), encoding="utf-8")


if __name__ == "__main__":
    main()
