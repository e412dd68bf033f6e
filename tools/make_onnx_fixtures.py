"""Writes crates/interop/tests/fixtures/onnx: small networks, an input of each, and what ONNX Runtime answers.

Needs onnx, onnxruntime, numpy, safetensors. Run it from the root of the repository:

    python tools/make_onnx_fixtures.py
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

OUT = Path(__file__).parent.parent / "crates" / "interop" / "tests" / "fixtures" / "onnx"
RNG = np.random.default_rng(0)


def weight(*shape, low=-0.5, high=0.5):
    return RNG.uniform(low, high, shape).astype(np.float32)


class Net:
    """Nodes and constants of a network under construction."""

    def __init__(self, name, shape, opset=17, ir=8):
        self.name, self.shape, self.opset, self.ir = name, shape, opset, ir
        self.nodes, self.constants, self.count = [], [], 0

    def const(self, name, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def __call__(self, op, *inputs, name=None, **attributes):
        self.count += 1
        output = f"v{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name or f"{op}_{self.count}", **attributes))
        return output

    def bn(self, x, name, channels):
        parts = dict(weight=weight(channels, low=0.5), bias=weight(channels), running_mean=weight(channels),
                     running_var=weight(channels, low=0.5, high=2))
        return self("BatchNormalization", x, *[self.const(f"{name}.{k}", v) for k, v in parts.items()], epsilon=1e-3)

    def save(self, output, classes, metadata=None):
        graph = helper.make_graph(
            self.nodes, self.name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *self.shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", classes])], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=self.ir)
        for key, value in (metadata or {}).items():
            entry = model.metadata_props.add()
            entry.key, entry.value = key, value
        onnx.checker.check_model(model)
        onnx.save(model, OUT / f"{self.name}.onnx")
        session = onnxruntime.InferenceSession(model.SerializeToString())
        x = RNG.uniform(-2, 2, (3, *self.shape)).astype(np.float32)
        (y,) = session.run(None, {"x": x})
        save_file({"x": x, "y": y}, OUT / f"{self.name}.safetensors")


def residual():
    """Convolutions of every kind, BatchNorm, a residual sum, an option-A shortcut."""
    n = Net("residual", (3, 9, 11))
    x = n("Conv", "x", n.const("stem.weight", weight(4, 3, 3, 3)), n.const("stem.bias", weight(4)), pads=[1, 1, 1, 1])
    x = n("Relu", n.bn(x, "bn", 4))
    y = n("Conv", x, n.const("dw.weight", weight(4, 1, 3, 3)), group=4, auto_pad="SAME_UPPER", strides=[2, 2])
    y = n("Clip", y, n.const("zero", np.float32(0)), n.const("six", np.float32(6)))
    y = n("Conv", y, n.const("pw.weight", weight(8, 4, 1, 1)))
    s = n("Slice", x, n.const("starts", [0, 0]), n.const("ends", [2**62, 2**62]), n.const("axes", [2, 3]),
          n.const("steps", [2, 2]))
    s = n("Pad", s, n.const("pads", [0, 2, 0, 0, 0, 2, 0, 0]))
    x = n("Relu", n("Add", y, s))
    x = n("Conv", x, n.const("dil.weight", weight(6, 4, 3, 3)), group=2, dilations=[2, 2], pads=[2, 1, 2, 2])
    x = n("GlobalAveragePool", x)
    x = n("Flatten", x)
    x = n("Gemm", x, n.const("fc.weight", weight(5, 6)), n.const("fc.bias", weight(5)), transB=1)
    n.save(x, 5, {"classes": "a,b,c,d,e", "preprocess.pixels": "unit"})


def pools():
    """Pooling with padding and rounding up, constants, matrix products."""
    n = Net("pools", (2, 10, 9), opset=13, ir=7)
    mean, std = n.const("mean", weight(1, 2, 1, 1)), n.const("std", weight(2, 1, 1, low=0.5, high=2))
    x = n("Div", n("Sub", "x", mean), std)
    x = n("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    x = n("AveragePool", x, kernel_shape=[2, 2], strides=[1, 2], pads=[0, 1, 1, 0])
    x = n("AveragePool", x, kernel_shape=[2, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    x = n("Mul", n.const("gain", np.float32(1.5)), x)
    x = n("Identity", n("Dropout", x))
    x = n("Reshape", x, n.const("flat", [0, -1]))
    features = 2 * 6 * 2
    x = n("MatMul", x, n.const("w", weight(features, 7)))
    x = n("Relu", n("Add", n.const("b", weight(7)), x))
    x = n("Gemm", x, n.const("w2", weight(7, 4)), alpha=0.5)
    n.save(n("LogSoftmax", x, axis=1), 4)


def old():
    """What older exporters write: attributes where inputs are now, a mean over axes, Constant nodes."""
    n = Net("old", (2, 6, 6), opset=9, ir=4)
    x = n("Conv", "x", n.const("onnx::Conv_7", weight(3, 2, 2, 2)), name="/layer1/layer1.0/conv/Conv",
          auto_pad="SAME_LOWER")
    x = n("Clip", x, min=-0.5, max=0.75)
    x = n("Slice", x, starts=[1], ends=[-1], axes=[2])
    x = n("Pad", x, pads=[0, 0, 1, 0, 0, 0, 0, 2])
    x = n("ReduceMean", x, axes=[-2, -1], keepdims=0)
    c = n("Constant", value=numpy_helper.from_array(weight(3)))
    x = n("Add", x, c)
    n.save(n("Softmax", x), 3)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    residual()
    pools()
    old()
