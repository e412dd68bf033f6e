"""Writes crates/interop/tests/fixtures/onnx: small networks, an input of each, and what ONNX Runtime answers.

Needs onnx, onnxruntime, numpy, safetensors. Run it from the root of the repository:

    python tools/make_onnx_fixtures.py
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
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


class Noise(CalibrationDataReader):
    """What quantize_static observes."""

    def __init__(self, shape):
        self.batches = iter([{"x": RNG.uniform(-2, 2, (4, *shape)).astype(np.float32)} for _ in range(4)])

    def get_next(self):
        return next(self.batches, None)


def int8():
    """A network of every integer operator, as ONNX Runtime's quantizer writes it, with its answers."""
    n = Net("int8", (3, 13, 12), opset=17)
    x = n("Conv", "x", n.const("stem.weight", weight(8, 3, 3, 3)), n.const("stem.bias", weight(8)), pads=[1, 1, 1, 1])
    x = n("MaxPool", n("Relu", x), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = n("Conv", x, n.const("up.weight", weight(12, 8, 1, 1)), n.const("up.bias", weight(12)))
    y = n("Clip", y, n.const("zero", np.float32(0)), n.const("six", np.float32(6)))
    y = n("Conv", y, n.const("dw.weight", weight(12, 1, 3, 3)), n.const("dw.bias", weight(12)), group=12, pads=[1, 1, 1, 1])
    y = n("Clip", y, n.const("zero2", np.float32(0)), n.const("six2", np.float32(6)))
    y = n("Conv", y, n.const("down.weight", weight(8, 12, 1, 1)))
    x = n("Relu", n("Add", x, y))
    x = n("Conv", x, n.const("far.weight", weight(6, 8, 3, 2)), dilations=[2, 1], strides=[1, 2], pads=[1, 0, 2, 1])
    x = n("Flatten", n("GlobalAveragePool", x))
    x = n("Gemm", x, n.const("fc.weight", weight(5, 6)), n.const("fc.bias", weight(5)), transB=1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.onnx"
        graph = helper.make_graph(
            n.nodes, n.name, [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *n.shape])],
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", 5])], n.constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
        u8, s8 = QuantType.QUInt8, QuantType.QInt8
        for name, form, activations, weights, per_channel, options in [
            ("qdq-u8s8", QuantFormat.QDQ, u8, s8, True, {}),
            ("qdq-s8s8", QuantFormat.QDQ, s8, s8, False, {"ActivationSymmetric": True}),
            ("qdq-float-weights", QuantFormat.QDQ, u8, s8, True, {"AddQDQPairToWeight": True}),
            ("qoperator-u8s8", QuantFormat.QOperator, u8, s8, True, {}),
            ("qoperator-u8u8", QuantFormat.QOperator, u8, u8, False, {"WeightSymmetric": True}),
        ]:
            out = OUT / f"{name}.onnx"
            quantize_static(source, out, Noise(n.shape), quant_format=form, activation_type=activations,
                            weight_type=weights, per_channel=per_channel, extra_options=options)
            settings = onnxruntime.SessionOptions()
            # On CPUs without VNNI its products of u8 and s8 saturate otherwise.
            settings.add_session_config_entry("session.x64quantprecision", "1")
            session = onnxruntime.InferenceSession(out, settings)
            inputs = RNG.uniform(-2, 2, (4, *n.shape)).astype(np.float32)
            (y,) = session.run(None, {"x": inputs})
            save_file({"x": inputs, "y": y}, OUT / f"{name}.safetensors")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    residual()
    pools()
    old()
    int8()
