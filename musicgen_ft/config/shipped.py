"""Where the configs that come with the package lie."""

from pathlib import Path

from musicgen_ft.errors import UserError


def config_folder() -> Path:
    """The shipped configs: the checkout's where there is one, else the installed package's."""
    package = Path(__file__).parents[1]
    checkout = package.parent
    return checkout / "configs" if (checkout / "pyproject.toml").is_file() else package / "configs"


def config_path(recipe: str, name: str) -> Path:
    """The YAML that ``--config`` means: a file, or the name of a shipped one.

    Raises:
        UserError: listing the names that there are.
    """
    shipped = config_folder() / recipe
    for path in (Path(name), shipped / f"{name}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml"))) or "none"
    raise UserError(f"--config {name}: no such file, and no shipped config of {recipe}. Shipped: {names}.")
