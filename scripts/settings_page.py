"""Writes docs/settings.md from the settings themselves: `make docs`."""

from service.settings import Settings


def page() -> str:
    """The page's text."""
    rows = [
        "# Settings of `msmlp serve`",
        "",
        "Every setting is an option and a variable of the environment; the option wins. A variable that begins with",
        "`MSMLP_` and is none of these is refused. This page is generated: `make docs`.",
        "",
        "| option | environment | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        option, variable = "--" + name.replace("_", "-"), f"MSMLP_{name.upper()}"
        rows.append(f"| `{option}` | `{variable}` | `{_default(name, field.default)}` | {field.description} |")
    return "\n".join(rows) + "\n"


def _default(name: str, value: object) -> str:
    # These two depend on where and on what the service runs.
    return {"weights": "weights/cifar10-xs", "decode_threads": "number of cores, 2 at least"}.get(name, str(value))


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
