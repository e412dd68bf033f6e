"""The same networks as ONNX files: float, and quantized by ONNX Runtime's static quantizer."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
MIDDLE = np.uint8(128)  # the zero point of a product that ends in codes, here and in the engines


def model(graph_nodes, inputs, outputs, constants):
    graph = helper.make_graph(
        graph_nodes, "benchmark", inputs, outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def network(net, batch):
    """`net` with its BatchNorm folded, for one batch size."""
    nodes, constants = [], dict(net.weights)

    def emit(op, inputs, output, **attrs):
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attrs))

    for node in net.nodes:
        name, inputs = node["name"], node["inputs"]
        raw = f"{name}.sum" if node.get("relu") else name
        match node["op"]:
            case "conv":
                emit("Conv", [inputs[0], f"{name}.weight", f"{name}.bias"], raw,
                     kernel_shape=[node["k"]] * 2, strides=[node["stride"]] * 2, pads=[node["pad"]] * 4)
            case "maxpool":
                emit("MaxPool", inputs, raw, kernel_shape=[node["k"]] * 2,
                     strides=[node["stride"]] * 2, pads=[node["pad"]] * 4)
            case "shortcut":
                side = node["side"]
                constants |= {"slice.starts": np.array([0, 0]), "slice.ends": np.array([2**31 - 1] * 2),
                              "slice.axes": np.array([2, 3]), "slice.steps": np.array([2, 2]),
                              f"pad.{side}": np.array([0, side, 0, 0, 0, side, 0, 0])}
                emit("Slice", [inputs[0], "slice.starts", "slice.ends", "slice.axes", "slice.steps"], f"{name}.half")
                emit("Pad", [f"{name}.half", f"pad.{side}"], raw)
            case "add":
                emit("Add", inputs, raw)
            case "mean":
                emit("GlobalAveragePool", inputs, f"{name}.pixel")
                emit("Flatten", [f"{name}.pixel"], raw)
            case "linear":
                emit("Gemm", [inputs[0], f"{name}.weight", f"{name}.bias"], raw, transB=1)
        if node.get("relu"):
            emit("Relu", [raw], name)
    last = net.nodes[-1]
    shape = [batch, last["out"]] if last["op"] == "linear" else [batch, *net.input_shape]
    value = helper.make_tensor_value_info
    return model(nodes, [value("input", TensorProto.FLOAT, [batch, *net.input_shape])],
                 [value(last["name"], TensorProto.FLOAT, shape)], constants)


def quantize(source, target, calibration):
    """QDQ, u8 activations, s8 weights with a scale per output channel; ranges from `calibration`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(calibration)

        def get_next(self):
            x = next(self.left, None)
            return None if x is None else {"input": x[None]}

    prepared = f"{target}.prepared"
    quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
    quantize_static(prepared, str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    import os
    os.remove(prepared)


def rebatch(source, target, batch):
    """The same file for another batch size: nothing inside depends on it."""
    made = onnx.load(source)
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del made.graph.value_info[:]
    onnx.save(made, target)


def gemm_f32(m, n, k, b):
    value = helper.make_tensor_value_info
    return model([helper.make_node("MatMul", ["a", "b"], ["c"])], [value("a", TensorProto.FLOAT, [m, k])],
                 [value("c", TensorProto.FLOAT, [m, n])], {"b": b})


def gemm_integer(m, n, k, b):
    """u8 × s8 → i32, as it is."""
    value = helper.make_tensor_value_info
    return model([helper.make_node("MatMulInteger", ["a", "b"], ["c"])], [value("a", TensorProto.UINT8, [m, k])],
                 [value("c", TensorProto.INT32, [m, n])], {"b": b})


def gemm_codes(m, n, k, b, scale):
    """u8 × s8 → u8: the sums divided by `scale`, about a zero point of 128."""
    value = helper.make_tensor_value_info
    one = np.array(np.float32(1))
    return model([helper.make_node("QLinearMatMul", ["a", "one", "zero", "b", "one", "zero_b", "scale", "middle"], ["c"])],
                 [value("a", TensorProto.UINT8, [m, k])], [value("c", TensorProto.UINT8, [m, n])],
                 {"b": b, "one": one, "zero": np.array(np.uint8(0)), "zero_b": np.array(np.int8(0)),
                  "scale": np.array(scale), "middle": np.array(MIDDLE)})


def gemm_qdq(m, n, k, b, scale=None):
    """u8 × s8 → f32, or u8 with a scale, for engines that know integers as scaled floats only."""
    value = helper.make_tensor_value_info
    one, scales = np.float32(1), np.ones(n, np.float32)
    nodes = [helper.make_node("DequantizeLinear", ["a", "one", "zero"], ["af"]),
             helper.make_node("DequantizeLinear", ["b", "scales", "zeros"], ["bf"], axis=1),
             helper.make_node("MatMul", ["af", "bf"], ["c" if scale is None else "cf"])]
    constants = {"b": b, "one": np.array(one), "zero": np.array(np.uint8(0)), "scales": scales, "zeros": np.zeros(n, np.int8)}
    output = TensorProto.FLOAT
    if scale is not None:
        nodes.append(helper.make_node("QuantizeLinear", ["cf", "scale", "middle"], ["c"]))
        constants |= {"scale": np.array(scale), "middle": np.array(MIDDLE)}
        output = TensorProto.UINT8
    return model(nodes, [value("a", TensorProto.UINT8, [m, k])], [value("c", output, [m, n])], constants)
