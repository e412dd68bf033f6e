"""PyTorch: the fastest of its documented CPU paths, chosen by timing each when a workload is loaded."""

import numpy as np
import torch
from safetensors.torch import load_file
from serve import Model, Skip, fastest, serve
from torch import nn
from torch.nn import functional as F

torch.backends.quantized.engine = "x86"


class Network(nn.Module):
    """A list of nodes as modules under torchvision's names; `fx` unrolls the loop when it traces."""

    def __init__(self, nodes):
        super().__init__()
        self.nodes, channels = nodes, {"input": None}
        for node in nodes:
            channels[node["name"]] = node.get("out", channels[node["inputs"][0]])
        for node in nodes:
            c = channels[node["inputs"][0]] or node.get("in") or 3
            if node["op"] == "conv":
                bias = node["bn"] is None
                self.put(node["name"], nn.Conv2d(c, node["out"], node["k"], node["stride"], node["pad"], bias=bias))
                if node["bn"]:
                    self.put(node["bn"], nn.BatchNorm2d(node["out"]))
            elif node["op"] == "linear":
                self.put(node["name"], nn.Linear(c, node["out"]))
            if node.get("relu"):
                self.put(relu_name(node), nn.ReLU())

    def put(self, path, module):
        *parents, last = path.split(".")
        at = self
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, nn.Module())
            at = getattr(at, parent)
        at.add_module(last, module)

    def forward(self, x):
        values = {"input": x}
        for node in self.nodes:
            a, name = values[node["inputs"][0]], node["name"]
            if node["op"] == "conv":
                y = self.get_submodule(name)(a)
                if node["bn"]:
                    y = self.get_submodule(node["bn"])(y)
            elif node["op"] == "maxpool":
                y = F.max_pool2d(a, node["k"], node["stride"], node["pad"])
            elif node["op"] == "shortcut":
                y = F.pad(a[:, :, ::2, ::2], (0, 0, 0, 0, node["side"], node["side"]))
            elif node["op"] == "add":
                y = a + values[node["inputs"][1]]
            elif node["op"] == "mean":
                y = torch.flatten(F.adaptive_avg_pool2d(a, 1), 1)
            elif node["op"] == "linear":
                y = self.get_submodule(name)(a)
            if node.get("relu"):
                y = self.get_submodule(relu_name(node))(y)
            values[name] = y
        return y


def relu_name(node):
    return node["name"].replace(".", "_") + "_relu"


def network(files):
    nodes = files.nodes()
    nodes[0]["in"] = files.info["input"][0]
    made = Network(nodes).eval()
    missing, extra = made.load_state_dict(load_file(files.path("safetensors")), strict=False)
    assert not extra and all(name.endswith("num_batches_tracked") for name in missing), (missing, extra)
    return made.to(memory_format=torch.channels_last)


def images(x):
    return torch.from_numpy(np.ascontiguousarray(x)).to(memory_format=torch.channels_last)


def fx_int8(made, example, calibration):
    """FX graph mode with the x86 engine, as the quantization guide has it."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(made, get_default_qconfig_mapping("x86"), (example,))
    for x in calibration:
        prepared(x)
    return convert_fx(prepared)


def pt2e_int8(made, example, calibration):
    """PT2 export with the X86Inductor quantizer, compiled by inductor."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(made, (example,)).module(), quantizer)
    for x in calibration:
        prepared(x.expand_as(example) if x.shape != example.shape else x)
    return convert_pt2e(prepared)


def scripted(made, example, optimize=True):
    traced = torch.jit.freeze(torch.jit.trace(made, example))
    return torch.jit.optimize_for_inference(traced) if optimize else traced


def compiled(made):
    import torch._inductor.config as config

    config.freezing = True
    return torch.compile(made)


def load_network(files):
    batches = [images(x) for x in files.batches()]
    example, chosen = batches[0], {}
    calibration = [images(x[None]) for x in files.images("calibration")]
    deep = files.workload["kind"] == "network"

    def candidate(make):
        def prepared():
            chosen["last"] = make()
            model = chosen["last"]
            def run():
                with torch.inference_mode():
                    return model(example)
            run.model = model
            return run
        return prepared

    if files.precision == "f32":
        candidates = [("eager, channels-last", candidate(lambda: network(files))),
                      ("TorchScript frozen", candidate(lambda: scripted(network(files), example)))]
        if deep:
            candidates.append(("inductor, freezing", candidate(lambda: compiled(network(files)))))
    else:
        candidates = [("FX x86, TorchScript frozen", candidate(
            lambda: scripted(fx_int8(network(files), example, calibration), example, optimize=False)))]
        if deep:
            candidates.append(("PT2E X86Inductor, freezing", candidate(
                lambda: compiled(pt2e_int8(network(files), example, calibration)))))
    with torch.no_grad():
        setting, run = fastest(candidates, files.wanted)

    def outputs():
        with torch.inference_mode():
            for x in batches:
                yield run.model(x).numpy()

    return Model(run, outputs, setting)


def load_gemm(files):
    a, b = (torch.from_numpy(x) for x in files.gemm())
    if files.precision == "f32":
        run = lambda: a @ b
        return Model(run, lambda: [run().numpy()], "matmul")
    if files.precision == "int8":
        signed = (a.int() - 128).to(torch.int8)
        run = lambda: torch._int_mm(signed, b)
        # a − 128 was multiplied: what 128 adds is the same for every row.
        return Model(run, lambda: [(run() + 128 * b.int().sum(0)).float().numpy()], "_int_mm s8×s8→i32")
    scale = float(np.fromfile(files.path("scale"), np.float32)[0])
    weight = torch._make_per_tensor_quantized_tensor(b.t().contiguous(), 1.0, 0)
    x = torch._make_per_tensor_quantized_tensor(a, 1.0, 0)

    def engine(name):
        def make():
            torch.backends.quantized.engine = name
            packed = torch.ops.quantized.linear_prepack(weight, None)
            return lambda: torch.ops.quantized.linear(x, packed, scale, 128)
        return make

    setting, run = fastest([("quantized.linear fbgemm, prepacked", engine("fbgemm")),
                            ("quantized.linear onednn, prepacked", engine("onednn"))], files.wanted)
    return Model(run, lambda: [run().int_repr().numpy()], setting)


def cifar_resnet18(classes=10):
    """ResNet-18 as CIFAR uses it: a 3×3 stem without stride, no max-pooling, 32×32 images."""
    nodes, x, channels = [], "input", 64
    def node(op, name, inputs, **attrs):
        nodes.append({"op": op, "name": name, "inputs": inputs, **attrs})
        return name
    def conv(x, name, out, k, stride, pad, bn, relu=False):
        return node("conv", name, [x], out=out, k=k, stride=stride, pad=pad, bn=bn, relu=relu)
    x = conv(x, "conv1", 64, 3, 1, 1, "bn1", True)
    for stage, width in enumerate([64, 128, 256, 512]):
        for block in range(2):
            stride, p = 2 if stage > 0 and block == 0 else 1, f"layer{stage + 1}.{block}"
            y = conv(x, f"{p}.conv1", width, 3, stride, 1, f"{p}.bn1", True)
            y = conv(y, f"{p}.conv2", width, 3, 1, 1, f"{p}.bn2")
            if stride != 1 or channels != width:
                x = conv(x, f"{p}.downsample.0", width, 1, stride, 0, f"{p}.downsample.1")
            x = node("add", f"{p}.add", [y, x], relu=True)
            channels = width
    node("linear", "fc", [node("mean", "avgpool", [x])], out=classes)
    nodes[0]["in"] = 3
    return nodes


def load_training(files):
    """One step: forward, cross-entropy, backward, SGD with momentum."""
    if files.model == "cifar-resnet18":
        nodes = cifar_resnet18()
    else:
        nodes = files.nodes()
        nodes[0]["in"] = 3
    torch.manual_seed(0)
    made = Network(nodes).train().to(memory_format=torch.channels_last)
    side = 224 if files.model == "resnet18" else 32
    x = torch.randn(files.batch, 3, side, side).to(memory_format=torch.channels_last)
    y = torch.arange(files.batch) % 10
    setting = "eager, channels-last"
    if files.precision == "qat":
        from torch.ao.quantization import get_default_qat_qconfig_mapping
        from torch.ao.quantization.quantize_fx import prepare_qat_fx

        made = prepare_qat_fx(made, get_default_qat_qconfig_mapping("x86"), (x,))
        setting = "eager, channels-last, FX prepare_qat (x86)"
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(made(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Model(step, lambda: [], setting)


def load(files, threads):
    torch.set_num_threads(threads)
    match files.workload["kind"]:
        case "gemm":
            return load_gemm(files)
        case "training":
            return load_training(files)
        case _:
            return load_network(files)


if __name__ == "__main__":
    torch.set_num_interop_threads(1)
    serve(load)
