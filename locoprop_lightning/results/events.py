"""TensorBoard's event files; nothing else here imports TensorBoard, which takes long."""

import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.errors import DataLossError, NotFoundError, OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.util.tensor_util import make_ndarray

from locoprop_lightning.results.runs import Points


def folders(root: Path) -> Iterator[Path]:
    """Folders of runs; the sampled inner curves of a run are none.

    Args:
        root: Folder to look in, at any depth, or a file in it.
    """
    folder = root if root.is_dir() else root.parent
    for path in sorted({file.parent for file in folder.rglob("events.out.tfevents.*")}):
        if not (path.parent.name == "inner" and path.name.startswith("step_")):
            yield path


def read_scalars(folder: Path, wanted: set[str], seen: set[str]) -> dict[str, Points]:
    """Points by tag, their seconds those on the wall; a later file stands for everything from its first step on.

    What is damaged is named on stderr.

    Args:
        folder: Folder of the event files.
        wanted: Tags to read.
        seen: Takes in all tags that were met.
    """
    scalars: dict[str, Points] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        own: dict[str, Points] = {}
        for event in _events(path):
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                if kind == "simple_value" or (kind == "tensor" and value.metadata.plugin_data.plugin_name == "scalars"):
                    seen.add(value.tag)
                    if value.tag in wanted:
                        number = value.simple_value if kind == "simple_value" else make_ndarray(value.tensor).item()
                        own.setdefault(value.tag, {})[event.step] = (float(number), event.wall_time)
        for tag, points in own.items():
            start = min(points)
            scalars[tag] = {step: point for step, point in scalars.get(tag, {}).items() if step < start} | points
    return scalars


def _events(path: Path) -> Iterator[Event]:
    """Events of a file up to its end, or to where it is damaged or half-written."""
    count = 0
    try:
        reader = PyRecordReader_New(str(path))
    except (OSError, NotFoundError):
        print(f"{path}: cannot be read, skipped", file=sys.stderr)
        return
    while True:
        try:
            reader.GetNext()
            event = Event.FromString(reader.record())
        except OutOfRangeError:
            return
        except (DataLossError, DecodeError, OSError):
            print(f"{path}: damaged or half-written; the rest after {count} events is skipped", file=sys.stderr)
            return
        count += 1
        yield event
