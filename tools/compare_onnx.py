"""Counts the elements in which ONNX Runtime and a recorded answer differ.

    python tools/compare_onnx.py SAMPLE.safetensors MODEL.onnx...

SAMPLE holds `x`, the input, and `y`, the answer that is expected. Needs onnx, onnxruntime, safetensors.
"""

import sys

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file


def main(sample, *paths):
    sample = load_file(sample)
    for path in paths:
        onnx.checker.check_model(onnx.load(path), full_check=True)
        session = onnxruntime.InferenceSession(path)
        (y,) = session.run(None, {session.get_inputs()[0].name: sample["x"]})
        differing = int((y != sample["y"]).sum())
        print(f"{path}: {differing} of {y.size} differ, by at most {np.abs(y - sample['y']).max()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
