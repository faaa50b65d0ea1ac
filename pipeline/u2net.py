"""Run U2Net in 8-bit integers on a CPU: twice the speed, the same masks.

The graph is rewritten as onnxruntime wants it: each activation is rounded to a byte between two
operators (QuantizeLinear, DequantizeLinear), each weight is a 7-bit integer with a scale a
channel, and the six side outputs that rembg throws away are not computed. The range of each
activation was measured once on photos of products and lies beside this page; it belongs to these
weights only, so other weights, u2netp among them, are left alone: u2netp's masks did not survive
the rounding (IoU 0.5 to 0.8 with its own).

`python -m pipeline.u2net WEIGHTS PHOTO...` measures the ranges again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RANGES = Path(__file__).with_name("u2net_ranges.json")
MD5 = "60024c5c889badc19c04ad937298a77b"  # of the weights that rembg names u2net
VERSION = 1  # of the rewriting below and of the ranges
SIDE = 320
IN_INTEGERS = frozenset({"Conv", "Relu", "MaxPool", "Resize", "Concat", "Add"})
KEEP_RANGE = frozenset({"MaxPool", "Resize"})  # they make no value that was not there
WEIGHT_MAX = 63  # 7 bits: see pipeline/int8.py


def quantise(weights: Path) -> bytes:
    """Return the ONNX model in integers of a U2Net in float32."""
    import onnx
    from onnx import helper, numpy_helper

    model = _first_output_only(onnx.load(weights))
    ranges: dict[str, tuple[float, int]] = json.loads(RANGES.read_text())
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    constants: dict[str, NDArray[Any]] = {}
    nodes: list[Any] = []

    def restore(name: str, scale: str, zero: str, **options: Any) -> str:
        inputs = [f"{name}.q", scale, zero]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"], **options))
        return f"{name}.dq"

    def rounded(name: str) -> None:
        scale, zero = ranges[name]
        constants[f"{name}.scale"] = np.array(scale, np.float32)
        constants[f"{name}.zero"] = np.array(zero, np.uint8)
        inputs = [name, f"{name}.scale", f"{name}.zero"]
        nodes.append(helper.make_node("QuantizeLinear", inputs, [f"{name}.q"]))
        restore(name, *inputs[1:])

    rounded(model.graph.input[0].name)
    for node in model.graph.node:
        inputs = [f"{name}.dq" if name in ranges else name for name in node.input]
        if node.op_type == "Unsqueeze":  # its axes were an attribute before opset 13
            constants[f"{node.output[0]}.axes"] = np.array(node.attribute.pop().ints, np.int64)
            inputs.append(f"{node.output[0]}.axes")
        if node.op_type == "Conv" and node.input[0] in ranges:
            weight, bias = (arrays.pop(name) for name in node.input[1:3])
            scale = np.maximum(np.abs(weight).max((1, 2, 3)) / WEIGHT_MAX, 1e-12)
            scale = scale.astype(np.float32)
            whole = ranges[node.input[0]][0] * scale  # of the sums, thus of the bias
            for name, value, unit, kind in (
                (node.input[1], weight / scale[:, None, None, None], scale, np.int8),
                (node.input[2], bias / whole, whole, np.int32),
            ):
                constants[f"{name}.q"] = np.rint(value).astype(kind)
                constants[f"{name}.scale"] = unit.astype(np.float32)
                constants[f"{name}.zero"] = np.zeros(len(unit), kind)
                restore(name, f"{name}.scale", f"{name}.zero", axis=0)
            inputs[1:] = [f"{name}.dq" for name in node.input[1:3]]
        del node.input[:]
        node.input.extend(inputs)
        nodes.append(node)
        for name in node.output:
            if name in ranges:
                rounded(name)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in {**arrays, **constants}.items()
    )
    model.opset_import[0].version = 13  # the first with a scale a channel
    return bytes(model.SerializeToString())


def _first_output_only(model: Any) -> Any:
    from onnx.utils import Extractor

    names = [[model.graph.input[0].name], [model.graph.output[0].name]]
    return Extractor(model).extract_model(*names)


def measure_ranges(weights: Path, pictures: Iterable[Image.Image]) -> dict[str, tuple[float, int]]:
    """Return scale and zero point of every activation that is to be rounded."""
    import onnx
    import onnxruntime

    model = _first_output_only(onnx.load(weights))
    names = list(_rounded(model.graph))
    made = set(names) - {model.graph.input[0].name}
    del model.graph.output[1:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    entry = model.graph.input[0].name
    outputs = [each.name for each in session.get_outputs()]
    for picture in pictures:
        seen = normalise(picture)
        values = {entry: seen, **dict(zip(outputs, session.run(None, {entry: seen}), strict=True))}
        for name in names:
            low[name] = min(low[name], float(values[name].min()))
            high[name] = max(high[name], float(values[name].max()))
    ranges: dict[str, tuple[float, int]] = {}
    sources = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type in KEEP_RANGE}
    for name in names:
        scale = max(high[name] - low[name], 1e-6) / 255
        ranges[name] = (float(f"{scale:.6g}"), round(-low[name] / scale))
    for name, source in sources.items():
        if name in ranges and source in ranges:
            ranges[name] = ranges[source]
    return ranges


def _rounded(graph: Any) -> Iterator[str]:
    """Yield the activations between two operators that can work on bytes."""
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input[:1] if node.op_type == "Resize" else node.input:  # not its sizes
            readers.setdefault(name, set()).add(node.op_type)
    yield graph.input[0].name
    for node in graph.node:
        for name in node.output:
            wanted = readers.get(name, set()) - {"Shape"}
            if node.op_type == "Conv" and wanted == {"Relu"}:
                continue  # one operation with its Relu
            if wanted & IN_INTEGERS and node.op_type in IN_INTEGERS:
                yield name


def normalise(picture: Image.Image) -> NDArray[np.float32]:
    """Return (1, 3, 320, 320) float32 as rembg makes it."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    values = np.asarray(small, np.float64)
    values = values / max(float(values.max()), 1e-6)
    values = (values - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return values.transpose(2, 0, 1)[None].astype(np.float32)


if __name__ == "__main__":
    photos = (Image.open(name) for name in sys.argv[2:])
    found = json.dumps(measure_ranges(Path(sys.argv[1]), photos))
    RANGES.write_text(found.replace("], ", "],\n") + "\n")
