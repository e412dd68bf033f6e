"""The networks of the benchmark: a list of nodes, seeded weights, and a float reference in numpy.

Nobody who is measured is the referee: the reference output of every workload is computed here, by a
convolution that is one `matmul` over sliding windows.
"""

import json
import struct

import numpy as np


class Net:
    """Nodes in the order they run. Each names its inputs; the weights carry torchvision's names."""

    def __init__(self, name, input_shape):
        self.name, self.input_shape, self.nodes, self.channels = name, input_shape, [], {}
        self.weights = {}

    def node(self, op, name, inputs, **attrs):
        self.nodes.append({"op": op, "name": name, "inputs": inputs, **attrs})
        return name

    def conv(self, x, name, out, k, stride=1, pad=0, bn=None, relu=False):
        return self.node("conv", name, [x], out=out, k=k, stride=stride, pad=pad, bn=bn, relu=relu)

    def linear(self, x, name, out):
        return self.node("linear", name, [x], out=out)


def resnet18(classes=1000, size=224):
    net = Net("resnet18", [3, size, size])
    x = net.conv("input", "conv1", 64, 7, 2, 3, bn="bn1", relu=True)
    x = net.node("maxpool", "maxpool", [x], k=3, stride=2, pad=1)
    channels = 64
    for stage, width in enumerate([64, 128, 256, 512]):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            p = f"layer{stage + 1}.{block}"
            y = net.conv(x, f"{p}.conv1", width, 3, stride, 1, bn=f"{p}.bn1", relu=True)
            y = net.conv(y, f"{p}.conv2", width, 3, 1, 1, bn=f"{p}.bn2")
            if stride != 1 or channels != width:
                x = net.conv(x, f"{p}.downsample.0", width, 1, stride, 0, bn=f"{p}.downsample.1")
            x = net.node("add", f"{p}.add", [y, x], relu=True)
            channels = width
    net.linear(net.node("mean", "avgpool", [x]), "fc", classes)
    return net


def resnet20(classes=10):
    net = Net("resnet20", [3, 32, 32])
    x = net.conv("input", "conv1", 16, 3, 1, 1, bn="bn1", relu=True)
    channels = 16
    for stage, width in enumerate([16, 32, 64]):
        for block in range(3):
            stride = 2 if stage > 0 and block == 0 else 1
            p = f"layer{stage + 1}.{block}"
            y = net.conv(x, f"{p}.conv1", width, 3, stride, 1, bn=f"{p}.bn1", relu=True)
            y = net.conv(y, f"{p}.conv2", width, 3, 1, 1, bn=f"{p}.bn2")
            if stride != 1:  # He et al.'s option A: every second pixel, zero channels on both sides
                x = net.node("shortcut", f"{p}.shortcut", [x], side=(width - channels) // 2)
            x = net.node("add", f"{p}.add", [y, x], relu=True)
            channels = width
    net.linear(net.node("mean", "avgpool", [x]), "linear", classes)
    return net


def chain(channels, size, layers):
    """One layer of ResNet-18, several times in a row, so that the way in and out weighs little."""
    net = Net(f"conv-{channels}x{size}x{size}", [channels, size, size])
    x = "input"
    for i in range(layers):
        x = net.conv(x, str(2 * i), channels, 3, 1, 1, relu=True)
    return net


def convolve(x, w, b, stride, pad):
    k = w.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    v = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))[:, :, ::stride, ::stride]
    n, c, h, wd = v.shape[:4]
    rows = v.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * wd, c * k * k)
    y = (rows @ w.reshape(w.shape[0], -1).T).reshape(n, h, wd, -1).transpose(0, 3, 1, 2)
    return y if b is None else y + b[None, :, None, None]


def forward(net, x, on_conv=None, on_input=None, until=None):
    """The float reference. `on_conv(node, y)` sees each convolution before its BatchNorm,
    `on_input(node, x)` each node's first input."""
    values, w = {"input": x}, net.weights
    for node in net.nodes:
        a, name = values[node["inputs"][0]], node["name"]
        if on_input:
            on_input(node, a)
        match node["op"]:
            case "conv":
                y = convolve(a, w[f"{name}.weight"], w.get(f"{name}.bias"), node["stride"], node["pad"])
                if on_conv:
                    on_conv(node, y)
                if node["bn"]:
                    f, shift = fold(w, node["bn"])
                    y = y * f[None, :, None, None] + shift[None, :, None, None]
            case "maxpool":
                p, k, s = node["pad"], node["k"], node["stride"]
                y = np.pad(a, ((0, 0), (0, 0), (p, p), (p, p)), constant_values=-np.inf)
                y = np.lib.stride_tricks.sliding_window_view(y, (k, k), axis=(2, 3))[:, :, ::s, ::s].max((4, 5))
            case "shortcut":
                side = node["side"]
                y = np.pad(a[:, :, ::2, ::2], ((0, 0), (side, side), (0, 0), (0, 0)))
            case "add":
                y = a + values[node["inputs"][1]]
            case "mean":
                y = a.mean((2, 3))
            case "linear":
                y = a @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        if node.get("relu"):
            y = np.maximum(y, 0)
        values[name] = y
        if name == until:
            break
    return y


def fold(w, bn):
    """BatchNorm as `x · factor + shift`."""
    factor = w[f"{bn}.weight"] / np.sqrt(w[f"{bn}.running_var"] + 1e-5)
    return factor, w[f"{bn}.bias"] - w[f"{bn}.running_mean"] * factor


def images(rng, n, shape):
    """Smooth random images with a little noise, of mean 0 and variance 1."""
    c, h, w = shape
    coarse = rng.standard_normal((n, c, 8, 8))
    def stretch(size):
        at = np.linspace(0, 7, size)
        low = np.minimum(at.astype(int), 6)
        m = np.zeros((size, 8))
        m[np.arange(size), low], m[np.arange(size), low + 1] = 1 - (at - low), at - low
        return m
    x = stretch(h) @ coarse @ stretch(w).T + 0.2 * rng.standard_normal((n, c, h, w))
    x = (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True)
    return x.astype(np.float32)


def randomize(net, rng, calibration, prototypes):
    """Seeded He weights; BatchNorm statistics are those of the calibration images, so that
    activations neither die nor explode; the classifier knows the check images apart, so that a
    wrong class is an engine's error and not a tie."""
    w, channels = net.weights, {"input": net.input_shape[0]}
    for node in net.nodes:
        name, c = node["name"], channels[node["inputs"][0]]
        channels[name] = node.get("out", c + 2 * node.get("side", 0))
        if node["op"] == "conv":
            shape = (node["out"], c, node["k"], node["k"])
            w[f"{name}.weight"] = normal(rng, shape, np.sqrt(2 / (c * node["k"] ** 2)))
            if bn := node["bn"]:
                last = bn.endswith("bn2")  # residual branches weigh less than the trunk
                low, high = (0.3, 0.6) if last else (0.8, 1.2)
                w[f"{bn}.weight"] = rng.uniform(low, high, node["out"]).astype(np.float32)
                w[f"{bn}.bias"] = normal(rng, node["out"], 0.1)
                w[f"{bn}.running_mean"] = np.zeros(node["out"], np.float32)
                w[f"{bn}.running_var"] = np.ones(node["out"], np.float32)
            else:
                w[f"{name}.bias"] = normal(rng, node["out"], 0.1)
        if node["op"] == "linear":
            w[f"{name}.weight"] = normal(rng, (node["out"], c), 0.01)
            w[f"{name}.bias"] = np.zeros(node["out"], np.float32)

    def measure(node, y):
        if bn := node["bn"]:
            w[f"{bn}.running_mean"] = y.mean((0, 2, 3)).astype(np.float32)
            w[f"{bn}.running_var"] = y.var((0, 2, 3)).astype(np.float32)

    forward(net, calibration, measure)
    head = net.nodes[-1]
    if head["op"] == "linear":
        features = forward(net, prototypes, until=head["inputs"][0])
        centre = features.mean(0)
        rows = features - centre
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) ** 2 * 8
        # Class `step · i` for image `i`: spread, so that "class 0" is no safe guess.
        step = head["out"] // len(prototypes)
        for i, row in enumerate(rows):
            w[f"{head['name']}.weight"][i * step] = row
            w[f"{head['name']}.bias"][i * step] = -row @ centre


def normal(rng, shape, std):
    return (rng.standard_normal(shape) * std).astype(np.float32)


def folded(net):
    """The same network with BatchNorm inside its convolutions, for engines without BatchNorm."""
    result = Net(net.name, net.input_shape)
    result.nodes = [{**node, "bn": None} if node["op"] == "conv" else node for node in net.nodes]
    for node in net.nodes:
        name = node["name"]
        if node["op"] == "conv" and node["bn"]:
            factor, shift = fold(net.weights, node["bn"])
            result.weights[f"{name}.weight"] = net.weights[f"{name}.weight"] * factor[:, None, None, None]
            result.weights[f"{name}.bias"] = shift
        elif node["op"] in ("conv", "linear"):
            for part in ("weight", "bias"):
                result.weights[f"{name}.{part}"] = net.weights[f"{name}.{part}"]
    return result


def macs(net):
    """Multiply-accumulates of one image."""
    sizes, total = {"input": net.input_shape}, 0
    for node in net.nodes:
        c, h, w = sizes[node["inputs"][0]]
        if node["op"] in ("conv", "maxpool"):
            h, w = ((s + 2 * node["pad"] - node["k"]) // node["stride"] + 1 for s in (h, w))
            if node["op"] == "conv":
                total, c = total + node["out"] * c * node["k"] ** 2 * h * w, node["out"]
        elif node["op"] == "shortcut":
            c, h, w = c + 2 * node["side"], h // 2, w // 2
        elif node["op"] == "mean":
            h = w = 1
        elif node["op"] == "linear":
            total, c = total + c * node["out"], node["out"]
        sizes[node["name"]] = (c, h, w)
    return total


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [offset, offset + t.nbytes]}
        offset += t.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            file.write(np.ascontiguousarray(t, np.float32).tobytes())
