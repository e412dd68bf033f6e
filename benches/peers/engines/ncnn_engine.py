"""ncnn: f32 storage, packing and Winograd on; int8 as ncnn2table and ncnn2int8 would write it.

Those two tools are not in ncnn's package, so this file writes the network's `.param` and `.bin`
itself: symmetric int8 weights with a scale per channel, one scale an input from the calibration
images, and sums requantized directly where a convolution feeds a convolution.
"""

import json
import struct

import ncnn
import numpy as np
from safetensors.numpy import load_file
from serve import Model, Skip, serve

INT8 = 0x000D4B38  # the mark before int8 weights; 0 stands before f32


def convert(files):
    """The text of the `.param` file and the bytes of the `.bin` file."""
    text = json.loads(files.path("json").read_text())
    nodes, ranges = text["nodes"], text["ranges"]
    weights, int8 = load_file(files.path("folded.safetensors")), files.precision == "int8"
    readers = {}
    for node in nodes:
        for name in node["inputs"]:
            readers.setdefault(name, []).append(node)
    lines, blobs, data, taken = [], 0, bytearray(), {}

    def layer(kind, name, inputs, outputs, parameters=""):
        nonlocal blobs
        blobs += len(outputs)
        lines.append(" ".join([kind, name, str(len(inputs)), str(len(outputs)), *inputs, *outputs, parameters]))

    def made(name):  # a value with several readers is split: each of ncnn's blobs has one
        count = len(readers.get(name, []))
        taken[name] = [name] if count < 2 else [f"{name}_{i}" for i in range(count)]
        if count >= 2:
            layer("Split", f"split_{name}", [name], list(taken[name]))

    def scale(node):
        return 127 / ranges[node["name"]]

    def put_weights(node, requantized):
        w, b = weights[f"{node['name']}.weight"], weights[f"{node['name']}.bias"]
        if not int8:
            data.extend(struct.pack("<I", 0) + w.astype("<f4").tobytes() + b.astype("<f4").tobytes())
            return
        flat = w.reshape(w.shape[0], -1)
        scales = (127 / np.maximum(abs(flat).max(1), 1e-12)).astype("<f4")
        codes = np.clip(np.rint(flat * scales[:, None]), -127, 127).astype(np.int8).tobytes()
        data.extend(struct.pack("<I", INT8) + codes + b"\0" * (-len(codes) % 4) + b.astype("<f4").tobytes())
        data.extend(scales.tobytes() + struct.pack("<f", scale(node)))
        if requantized:
            data.extend(struct.pack("<f", scale(requantized)))

    layer("Input", "input", [], ["input"])
    made("input")
    for node in nodes:
        name, op = node["name"], node["op"]
        inputs = [taken[x].pop(0) for x in node["inputs"]]
        relu = node.get("relu", False)
        if op == "conv":
            next_ = readers.get(name, [])
            requantized = next_[0] if int8 and len(next_) == 1 and next_[0]["op"] == "conv" else None
            size = weights[f"{name}.weight"].size
            term = 0 if not int8 else 101 if requantized else 1
            layer("Convolution", f"conv_{name}", inputs, [name],
                  f"0={node['out']} 1={node['k']} 3={node['stride']} 4={node['pad']} 5=1 6={size} 8={term} 9={int(relu)}")
            put_weights(node, requantized)
        elif op == "linear":
            size = weights[f"{name}.weight"].size
            layer("InnerProduct", f"linear_{name}", inputs, [name], f"0={node['out']} 1=1 2={size} 8={int(int8)}")
            put_weights(node, None)
        elif op == "maxpool":
            layer("Pooling", name, inputs, [name], f"0=0 1={node['k']} 2={node['stride']} 3={node['pad']} 5=1")
        elif op == "mean":
            layer("Pooling", name, inputs, [name], "0=1 4=1")
        elif op == "shortcut":
            layer("Pooling", f"half_{name}", inputs, [f"{name}_half"], "0=0 1=1 2=2 5=1")
            layer("Padding", name, [f"{name}_half"], [name], f"7={node['side']} 8={node['side']}")
        elif op == "add":
            layer("BinaryOp", f"add_{name}", inputs, [f"{name}_sum"], "0=0")
            layer("ReLU", name, [f"{name}_sum"], [name])
        made(name)
    return f"7767517\n{len(lines)} {blobs}\n" + "\n".join(lines) + "\n", bytes(data)


def load(files, threads):
    if files.workload["kind"] not in ("network", "chain"):
        raise Skip("ncnn runs networks only")
    if files.batch != 1:
        raise Skip("ncnn has no batches")
    param, weights = files.path(f"{files.precision}.param"), files.path(f"{files.precision}.bin")
    if not weights.exists():
        text, data = convert(files)
        param.write_text(text)
        weights.write_bytes(data)
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(param)) or net.load_model(str(weights)):
        raise Skip("ncnn does not load the file")
    images = [np.ascontiguousarray(x[0]) for x in files.batches()]
    inputs = [ncnn.Mat(x).clone() for x in images]
    last = files.nodes()[-1]["name"]

    def infer(x):
        extractor = net.create_extractor()
        extractor.input("input", x)
        return extractor.extract(last)[1]

    setting = "packing and Winograd on" + (", symmetric int8" if files.precision == "int8" else ", f32 storage")
    return Model(lambda: infer(inputs[0]), lambda: (np.array(infer(x)) for x in inputs), setting)


if __name__ == "__main__":
    serve(load)
