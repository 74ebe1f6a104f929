"""What can go wrong in the model's half of the product.

MsmlpError
├── CallerError            the caller can fix it: exit status 2 on the command line
│   ├── ConfigError        a cascade or recipe that cannot be built
│   ├── DataError          a data set that cannot be read or is not what it must be
│   ├── WeightsError       a weights folder that is missing, damaged or does not fit
│   ├── OptionError        an option outside its range (name and allowed range in the text)
│   └── ImageError         one image that cannot be classified
│       ├── UndecodableImageError
│       └── ImageTooLargeError
├── TrainingStoppedError   training ended before its last epoch (NaN, a full disk)
│   └── TrainingInterruptedError   by Ctrl-C or SIGTERM
└── DeviceError            the device or a backend failed
    └── OutOfMemoryError   it has no room for what was asked

No status codes here: `service/errors.py` maps every leaf to HTTP.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


_PLAIN = {
    "Value error, ": "",
    "Input should be ": "expected ",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
}


class MsmlpError(Exception):
    """Root of the tree; the text is one clear line for a person."""


class MissingPackageError(ModuleNotFoundError):
    """A package that an extra brings; the text names the extra."""


class CallerError(MsmlpError):
    """The caller's mistake."""


class ConfigError(CallerError):
    """A cascade or recipe that cannot be built."""


class DataError(CallerError):
    """A data set that cannot be read or is not what it must be."""


class WeightsError(CallerError):
    """A weights folder that is missing, damaged or does not fit."""


class OptionError(CallerError):
    """An option outside its range.

    Args:
        name: the option's name, as the caller wrote it.
        detail: what is wrong and what is allowed.
    """

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name


class ImageError(CallerError):
    """One image that cannot be classified."""


class UndecodableImageError(ImageError):
    """Not an image, not a format that is read, or a damaged file."""


class ImageTooLargeError(ImageError):
    """More pixels than the limit; found in the header, before decoding."""


class TrainingStoppedError(MsmlpError):
    """Training ended before its last epoch."""


class TrainingInterruptedError(TrainingStoppedError):
    """Ctrl-C or SIGTERM ended training."""


class DeviceError(MsmlpError):
    """The device or a backend failed."""


class OutOfMemoryError(DeviceError):
    """The device has no room for what was asked; less may still fit."""


def first_mistake(error: "ValidationError") -> tuple[str, str]:
    """The first mistake that pydantic found: its place (`a.b.0`, empty for the whole) and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False)[0]
    text = plain(first["msg"])
    if first["type"] == "literal_error":
        text = "expected one of " + first["ctx"]["expected"].replace("' or '", "', '").replace("'", "")
    return ".".join(map(str, first["loc"])), text


def plain(text: str) -> str:
    """Pydantic's text in the words of our own messages."""
    for theirs, ours in _PLAIN.items():
        text = text.replace(theirs, ours)
    return text


def one_line(error: "ValidationError", subject: str = "") -> str:
    """The same as one line, after what it is about."""
    return ": ".join(part for part in (subject, *first_mistake(error)) if part)


def install_hint(extras: str, build: str = "") -> str:
    """How to install `extras` (comma-separated), where needed with the `build` for a cpu or gpu."""
    wanted = ",".join(part for part in (build, extras) if part)
    other = "" if build else f" (or gpu {extras})"
    return f'pip install "msmlp[{wanted}]"; in a clone, scripts/install.sh {build or "cpu"} {extras}{other}'
