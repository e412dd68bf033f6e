"""Exports a network in every form that there is, and has ONNX check each.

    python tools/check_onnx.py MODEL... [--ottava COMMAND]

Every version of the operators with every version of the file format; QDQ and QOperator, with signed and unsigned
weights, where MODEL is an integer network. `onnx.checker` looks at each with shape inference, ONNX Runtime opens it,
and its answers for one random image must be the same in all versions of a form.

Needs onnx and onnxruntime.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

OPSETS, FORMATS = range(13, 22), range(7, 11)


def export(command, model, out, flags):
    flags = [str(part) for flag in flags.items() for part in flag]
    done = subprocess.run([command, "export", model, str(out), "--quiet", *flags], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{model} {' '.join(flags)}: {done.stderr.strip()}")
    return onnx.load(out)


def answer(path):
    session = onnxruntime.InferenceSession(path)
    entry = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return session.run(None, {entry.name: x})[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--ottava", default="ottava")
    args = parser.parse_args()
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model.onnx"
            operators = {node.op_type for node in export(args.ottava, model, out, {}).graph.node}
            integer = "QuantizeLinear" in operators
            kinds = itertools.product(["qdq", "qoperator"], ["s8", "u8"]) if integer else [("qdq", "s8")]
            for kind, weights in kinds:
                answers = set()
                for opset, version in itertools.product(OPSETS, FORMATS):
                    flags = {"--format": kind, "--weights": weights, "--opset": opset, "--ir-version": version}
                    written = export(args.ottava, model, out, flags)
                    assert written.opset_import[0].version == opset and written.ir_version == version
                    onnx.checker.check_model(written, full_check=True)
                    answers.add(answer(out).tobytes())
                form = f"{kind} {weights}" if integer else "float"
                print(f"{model}: {form}: {len(OPSETS) * len(FORMATS)} files pass, {len(answers)} answer(s)")
                if len(answers) != 1:
                    sys.exit(1)


if __name__ == "__main__":
    main()
