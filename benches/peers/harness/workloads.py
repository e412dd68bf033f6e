"""What is measured, and the files that every engine reads."""

import json
import shutil

GEMMS = [(512, 512, 512), (1024, 1024, 1024), (3136, 64, 576), (784, 128, 1152), (196, 256, 2304), (49, 512, 4608)]
CONVS = [(64, 56), (128, 28), (256, 14), (512, 7)]
CHAIN = 8  # layers in a row
CHECKS, CALIBRATION = 8, 16
SEED = 20
VERSION = 2  # of the files that `prepare` writes


def all_workloads():
    """Every workload, in the order of the report."""
    made = [
        {"name": f"{model}-b{batch}-{p}", "kind": "network", "model": model, "batch": batch, "precision": p}
        for model, batch in [("resnet18", 1), ("resnet18", 8), ("resnet20", 1)] for p in ("f32", "int8")
    ]
    made += [
        {"name": f"conv-{c}x{s}x{s}-{p}", "kind": "chain", "model": f"conv-{c}x{s}x{s}", "batch": 1,
         "precision": p, "layers": CHAIN}
        for c, s in CONVS for p in ("f32", "int8")
    ]
    made += [
        {"name": f"gemm-{m}x{n}x{k}-{p}", "kind": "gemm", "model": f"gemm-{m}x{n}x{k}", "m": m, "n": n, "k": k,
         "precision": p}
        for m, n, k in GEMMS for p in ("f32", "int8", "codes")
    ]
    made += [
        {"name": f"train-{model}-b{batch}-{p}", "kind": "training", "model": model, "batch": batch, "precision": p}
        for model, batch in [("resnet20", 128), ("cifar-resnet18", 32), ("resnet18", 16)] for p in ("f32", "qat")
    ]
    return made


def prepare(directory):
    """Writes weights, inputs, reference outputs and ONNX files; once."""
    import numpy as np
    import onnx

    from . import networks, onnx_files

    done = directory / "manifest.json"
    if done.exists() and (written := json.loads(done.read_text())).get("version") == VERSION:
        return written
    # What engines made of other files, too.
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    manifest = {"version": VERSION}
    nets = [networks.resnet18(), networks.resnet20(), *(networks.chain(c, s, CHAIN) for c, s in CONVS)]
    for net in nets:
        calibration = networks.images(rng, CALIBRATION, net.input_shape)
        checks = networks.images(rng, CHECKS, net.input_shape)
        networks.randomize(net, rng, calibration, checks)
        path = lambda kind: directory / f"{net.name}.{kind}"
        networks.write_safetensors(path("safetensors"), net.weights)
        folded = networks.folded(net)
        networks.write_safetensors(path("folded.safetensors"), folded.weights)
        ranges = {}
        networks.forward(net, calibration, on_input=lambda node, x: ranges.update({node["name"]: float(abs(x).max())}))
        text = {"input": net.input_shape, "nodes": net.nodes, "ranges": ranges}
        path("json").write_text(json.dumps(text))
        checks.tofile(path("inputs"))
        calibration.tofile(path("calibration"))
        reference = networks.forward(net, checks).astype(np.float32)
        reference.tofile(path("reference"))
        onnx.save(onnx_files.network(folded, 1), path("b1.f32.onnx"))
        onnx_files.quantize(path("b1.f32.onnx"), path("b1.int8.onnx"), calibration)
        for precision in ("f32", "int8"):
            onnx_files.rebatch(path(f"b1.{precision}.onnx"), path(f"b8.{precision}.onnx"), 8)
        manifest[net.name] = {"macs": networks.macs(net), "input": net.input_shape, "output": list(reference.shape[1:])}
    for m, n, k in GEMMS:
        name = f"gemm-{m}x{n}x{k}"
        a, b = rng.integers(0, 256, (m, k), np.uint8), rng.integers(-127, 128, (k, n), np.int8)
        af, bf = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
        sums = a.astype(np.float64) @ b.astype(np.float64)
        # Symmetric about the middle of the codes, and no sum is beyond them.
        scale = np.float32(np.abs(sums).max() / 127)
        codes = np.rint(sums.astype(np.float32) * (1 / scale)) + onnx_files.MIDDLE
        for kind, array in (("a.u8", a), ("b.s8", b), ("a.f32", af), ("b.f32", bf), ("reference.f32", af @ bf),
                            ("reference.int8", sums.astype(np.float32)), ("reference.codes", codes.astype(np.float32)),
                            ("scale", scale)):
            array.tofile(directory / f"{name}.{kind}")
        onnx.save(onnx_files.gemm_f32(m, n, k, bf), directory / f"{name}.f32.onnx")
        onnx.save(onnx_files.gemm_integer(m, n, k, b), directory / f"{name}.int8.onnx")
        onnx.save(onnx_files.gemm_codes(m, n, k, b, scale), directory / f"{name}.codes.onnx")
        onnx.save(onnx_files.gemm_qdq(m, n, k, b), directory / f"{name}.qdq.onnx")
        onnx.save(onnx_files.gemm_qdq(m, n, k, b, scale), directory / f"{name}.qdq-codes.onnx")
        manifest[name] = {"macs": m * n * k, "output": [m, n]}
    done.write_text(json.dumps(manifest))
    return manifest
