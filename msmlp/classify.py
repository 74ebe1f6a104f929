"""`msmlp classify`: image files, through a running service or in this process."""

import inspect
import json
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, cast

import typer

import msmlp
from msmlp.client.answer import Answer, OperatingPoint, Result, ServiceError
from msmlp.model.errors import CallerError, MsmlpError, OptionError
from msmlp.model.text import accurate, percent, printable
from msmlp.service.cli import request_parameters

if TYPE_CHECKING:
    from msmlp.client.request import Options

Caller: TypeAlias = "msmlp.Client | msmlp.Model"
Row: TypeAlias = "tuple[int, Result, OperatingPoint | None]"
"""The file's index, its result, and the operating point, once that is known."""

T = TypeVar("T")

AT_ONCE = 128
"""Files of one request, at most; half as many, and half of that, where a service takes fewer."""
LONGEST_NAME = 40
TOGETHER = ("too_many_images", "body_too_large", "too_many_pixels")
"""What a service says of images that are too many for one request."""
OF_ONE_IMAGE = ("undecodable_image", "image_too_large")
"""What a service says of a single image; of several it lists those at fault."""


@dataclass(frozen=True)
class File:
    """A name to show, and where its bytes are, or the bytes."""

    name: str
    source: Path | bytes

    def read(self) -> bytes:
        if isinstance(self.source, bytes):
            return self.source
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise OptionError(self.name, error.strerror or "cannot be read") from None


def classify(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them; - is standard input.")
    ],
    url: Annotated[
        str | None, typer.Option(help="A running service, as http://127.0.0.1:8000. Default: classify in this process.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A weights folder to load in this process. Default: the shipped one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    **given: Any,
) -> None:
    """Classify image files, through a running service or in this process.

    Prints each image's label and confidence, the exit it left at and why, and its cost; with --top-k also the next
    classes. --json prints the answer of POST /classify; if the files need several requests, it joins their results and
    adds their latencies. A file that cannot be classified is named on stderr; the others go on, and the exit status is
    2.

    \b
    Examples:
      msmlp classify cat.jpg dog.png
      msmlp classify photos --weights weights/mine --policy fast
      msmlp classify cat.jpg --url http://127.0.0.1:8000 --budget-gflops 0.01
      MSMLP_API_KEY=$(cat key) msmlp classify cat.jpg --url http://127.0.0.1:8000
      msmlp classify - --thresholds 0.9,0.8 --json < cat.jpg
    """
    if url is not None and weights is not None:
        raise OptionError("--weights", "the service at --url has its own; give --url or --weights, not both")
    stream = bool(given.pop("stream"))
    options = cast("Options", given)
    if stream and as_json:
        raise OptionError("--stream", "prints lines as they come, but --json prints one document at the end")
    requests = Requests([file for path in images for file in _files(path)])
    with closing(msmlp.load(weights) if url is None else msmlp.Client(url)) as caller:
        if as_json:
            if document := _document(caller, requests, options):
                typer.echo(json.dumps(document))
        else:
            _print_table(caller, requests, _rows(caller, requests, options, stream), top=given["top_k"] is not None)
    if requests.failed:
        raise typer.Exit(2)


# The options of a request are made from the fields that the service reads them by.
_own = list(inspect.signature(classify).parameters.values())[:-1]
classify.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [*(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in _own), *request_parameters()]
)


def _files(path: Path) -> list[File]:
    if str(path) == "-":
        return [File("-", sys.stdin.buffer.read())]
    if not path.is_dir():
        return [File(str(path), path)]
    from msmlp.model.data.loading import is_image

    found = [File(str(each), each) for each in sorted(path.iterdir()) if is_image(each)]
    if not found:
        raise OptionError(str(path), "is a folder without image files")
    return found


def _document(caller: "Caller", requests: "Requests", options: "Options") -> dict[str, Any] | None:
    """The answer to one request; to several, the first's with all results and the sum of the latencies; or None."""
    request_id = uuid.uuid4().hex

    def ask(images: list[bytes]) -> list[Answer]:
        return [caller.classify(images, request_id=request_id, **options)]

    answers = list(requests.send(ask))
    if not answers:
        return None
    results = [{**result, "index": files[result.index]} for files, answer in answers for result in answer.results]
    return {
        **answers[0][1],
        "results": results,
        "latency_ms": round(sum(answer.latency_ms for _, answer in answers), 3),
        "throughput_images_per_second": answers[-1][1].throughput_images_per_second,
    }


def _rows(caller: "Caller", requests: "Requests", options: "Options", stream: bool) -> Iterator["Row"]:
    if stream:
        for files, line in requests.send(lambda images: caller.stream(images, **options)):
            yield files[line.index], line, line.get("operating_point")
        return
    for files, answer in requests.send(lambda images: [caller.classify(images, **options)]):
        for result in answer.results:
            yield files[result.index], result, answer.operating_point


def _print_table(caller: "Caller", requests: "Requests", rows: Iterator["Row"], *, top: bool) -> None:
    table: Table | None = None
    point: OperatingPoint | None = None
    last: list[Result] = []
    for index, result, chosen in rows:
        if table is None:  # once there is a first result
            table = Table([file.name for file in requests.files], caller.model(), sys.stdout.encoding, top=top)
            typer.echo(table.header())
        typer.echo(table.row(index, result))
        if result.reason != "goes_on":
            last.append(result)
        point = chosen or point
    if table is not None and point is not None:
        typer.echo(table.summary(last, point))


class Requests:
    """Files in as few requests as the service takes; those that cannot be classified are left out, and told."""

    def __init__(self, files: Sequence[File]) -> None:
        self.files = files
        self.failed = 0

    def send(self, ask: Callable[[list[bytes]], Iterable[T]]) -> Iterator[tuple[list[int], T]]:
        """What `ask` gives for all files, each with the numbers of the files that were in its request.

        Raises:
            CallerError, MsmlpError: what is not one file's fault.
        """
        for start in range(0, len(self.files), AT_ONCE):
            yield from self._ask(ask, [*range(start, min(start + AT_ONCE, len(self.files)))])

    def _ask(self, ask: Callable[[list[bytes]], Iterable[T]], chosen: list[int]) -> Iterator[tuple[list[int], T]]:
        images = self._read(chosen)
        chosen = [*images]
        if not chosen:
            return
        try:
            for answer in ask([*images.values()]):
                yield chosen, answer
        except ServiceError as error:
            if error.code in TOGETHER and len(chosen) > 1:
                middle = len(chosen) // 2
                yield from self._ask(ask, chosen[:middle])
                yield from self._ask(ask, chosen[middle:])
                return
            alone: list[dict[str, Any]] = [{"index": 0, "detail": error.detail}]
            listed = error.errors or (alone if error.code in OF_ONE_IMAGE and len(chosen) == 1 else [])
            bad = {chosen[each["index"]]: str(each["detail"]) for each in listed}
            if not bad:
                raise _for_terminal(error) from error
            for number, detail in bad.items():
                self._tell(f"{self.files[number].name}: {detail}")
            yield from self._ask(ask, [number for number in chosen if number not in bad])

    def _read(self, chosen: list[int]) -> dict[int, bytes]:
        images: dict[int, bytes] = {}
        for number in chosen:
            try:
                images[number] = self.files[number].read()
            except OptionError as error:
                self._tell(str(error))
        return images

    def _tell(self, text: str) -> None:
        self.failed += 1
        typer.echo(printable(f"msmlp: {text}"), err=True)


def _for_terminal(error: ServiceError) -> MsmlpError:
    """The error as a person at a terminal needs it."""
    if error.code == "unreachable":
        return MsmlpError(f"{error.detail}; check the address, or start a service with msmlp serve")
    mistake = error.status is not None and 400 <= error.status < 500 and error.status != 429
    return CallerError(error.detail) if mistake else MsmlpError(error.detail)


class Table:
    """Lines of text: a header, a row a result, a summary.

    Args:
        names: the files' names, by the results' index.
        model: the document of `GET /model`.
        encoding: the terminal's; what it cannot show is replaced.
        top: list further classes below each image.
    """

    def __init__(self, names: list[str], model: Mapping[str, Any], encoding: str, *, top: bool) -> None:
        self._names = [_shortened(name) for name in names]
        self._widths = max(map(len, [*self._names, "file"])), max(map(len, [*model["classes"], "label"]))
        self._full: float = model["exits"][-1]["gflops"]
        self._encoding, self._top = encoding, top

    def header(self) -> str:
        return f"{self._what('file', 'label', 'confidence')} exit    why         GFLOPs  of full       ms"

    def row(self, index: int, result: Result) -> str:
        exit = f"{result.exit or '-'} of {result.exits}"
        why = result.reason.replace("_", " ")
        cost = f"{result.gflops:8.3g}  {self._share(result.gflops):>7}"
        confidence = "" if result.confidence is None else percent(result.confidence, 1)
        first = self._what(self._names[index], result.label or "-", confidence)
        rows = [f"{first} {exit:<7} {why:<9} {cost} {result.latency_ms:8.1f}"]
        if self._top:
            rows += [self._what("", each.label, percent(each.probability, 1)) for each in result.top_k[1:]]
        return self._shown("\n".join(rows))

    def summary(self, results: Iterable[Result], point: OperatingPoint) -> str:
        costs = [result.gflops for result in results]
        mean = sum(costs) / len(costs)
        counted = "1 image" if len(costs) == 1 else f"{len(costs)} images"
        name = point.name or ", ".join(f"{t:g}" for t in point.thresholds)
        error = point.get("standard_error")  # services before 0.2 do not say it
        expected = percent(point.expected_accuracy, 1) if error is None else accurate(point.expected_accuracy, error, 1)
        return self._shown(
            f"{counted}: {mean:.3g} GFLOPs on average, {self._share(mean)} of the full cascade's {self._full:.3g}; "
            f"operating point {name} ({point.source}), expected accuracy {expected}"
        )

    def _what(self, name: str, label: str, confidence: str) -> str:
        return f"{name:<{self._widths[0]}}  {label:<{self._widths[1]}}  {confidence:>10}"

    def _share(self, gflops: float) -> str:
        return percent(gflops / self._full, 0)

    def _shown(self, text: str) -> str:
        # A file's name may hold bytes that are not valid text.
        return text.encode(self._encoding, "replace").decode(self._encoding, "replace")


def _shortened(name: str) -> str:
    """The end of a long name, where files differ, without control characters."""
    plain = printable(name)
    return plain if len(plain) <= LONGEST_NAME else "..." + plain[3 - LONGEST_NAME :]
