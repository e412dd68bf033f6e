"""Counts the elements in which ONNX Runtime and a recorded answer differ.

    python tools/compare_onnx.py SAMPLE.safetensors MODEL.onnx...
    python tools/compare_onnx.py --cifar10 DIR/test_batch.bin --logits LOGITS.safetensors MODEL.onnx...

SAMPLE holds `x`, the input, and `y`, the answer that is expected. With --cifar10 the input is the test images,
prepared as the model's metadata say, and the answer what `ottava eval --logits LOGITS.safetensors` wrote; the
accuracy is printed as well. --precise sets `session.x64quantprecision`: on CPUs with AVX2 and no VNNI, ONNX
Runtime's products of u8 and s8 saturate without it.

Needs onnx, onnxruntime, safetensors.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file


def prepared(pixels, metadata):
    """Bytes as the network takes them; in f32, in the order of operations that `docs/data.md` gives."""
    x = pixels.astype(np.float32)
    if metadata["preprocess.pixels"] == "raw":
        return x
    x = x / np.float32(255)
    if metadata["preprocess.pixels"] == "unit":
        return x
    numbers = lambda key: np.array(metadata[f"preprocess.{key}"].split(","), np.float32).reshape(-1, 1, 1)
    return (x - numbers("mean")) / numbers("std")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--logits")
    parser.add_argument("--precise", action="store_true")
    args = parser.parse_args()
    labels = None
    if args.cifar10:
        records = np.fromfile(args.cifar10, np.uint8).reshape(-1, 3073)
        labels, pixels = records[:, 0], records[:, 1:].reshape(-1, 3, 32, 32)
        expected = load_file(args.logits)["logits"]
    else:
        sample = load_file(args.files.pop(0))
        x, expected = sample["x"], sample["y"]
    for path in args.files:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        if labels is not None:
            x = prepared(pixels, {entry.key: entry.value for entry in model.metadata_props})
        options = onnxruntime.SessionOptions()
        if args.precise:
            options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(path, options)
        name = session.get_inputs()[0].name
        y = np.concatenate([session.run(None, {name: x[i : i + 500]})[0] for i in range(0, len(x), 500)])
        line = f"{path}: {(y != expected).sum()} of {y.size} differ, by at most {np.abs(y - expected).max()}"
        if labels is not None:
            right = lambda logits: (logits.argmax(1) == labels).sum()
            line += f"; {right(y)} of {len(labels)} right, {right(expected)} in the recorded answer"
        print(line)


if __name__ == "__main__":
    main()
