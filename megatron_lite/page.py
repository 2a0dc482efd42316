"""Reports as pages of HTML that open without a network: page.html, which each report's template extends."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, values: dict[str, Any]) -> str:
    """`template` is a path below the package. Raises jinja2.UndefinedError for a value that it asks for and lacks."""
    loader = FileSystemLoader(Path(str(files("megatron_lite"))))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(values)
