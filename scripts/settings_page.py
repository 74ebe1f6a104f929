"""Writes docs/settings.md from the settings themselves: `make docs`."""

from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from msmlp.service.cli import limits, shown_default
from msmlp.service.settings import Settings


def page() -> str:
    """The page's text."""
    rows = [
        "# Settings of `msmlp serve`",
        "",
        "Every setting is an option and a variable of the environment; the option wins. A variable that begins with",
        "`MSMLP_` and is none of these is refused, one that is empty is not set. This page is generated: `make docs`.",
        "",
        "| option | environment | default | allowed | meaning |",
        "|---|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        option, variable = "--" + name.replace("_", "-"), f"MSMLP_{name.upper()}"
        default = shown_default(name, field)
        rows.append(f"| `{option}` | `{variable}` | `{default}` | {_allowed(field)} | {field.description} |")
    return "\n".join(rows) + "\n"


def _allowed(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    found = limits(field)
    if not found:
        return ""
    return f"{found['min']} to {found['max']}" if "max" in found else f"{found['min']} or more"


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
