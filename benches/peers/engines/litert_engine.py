"""LiteRT with XNNPACK: converted by litert-torch, quantized by ai-edge-quantizer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from serve import Files, Model, Skip, serve


def file(files, precision):
    return files.path(f"b{files.batch}.{precision}.tflite")


def convert(files):
    """Writes the float file, and the quantized one if it is asked for."""
    if not file(files, "f32").exists():
        import litert_torch
        import torch
        from torch_engine import network

        made = network(files).to(memory_format=torch.contiguous_format)
        example = torch.from_numpy(files.batches()[0].copy())
        litert_torch.convert(made, (example,)).export(str(file(files, "f32")))
    if files.precision == "int8":
        from ai_edge_quantizer import quantizer, recipe

        source = str(file(files, "f32"))
        work = quantizer.Quantizer(source, recipe.static_wi8_ai8())
        [(key, signature)] = Interpreter(source).get_signature_list().items()
        samples = files.images("calibration")
        stacks = [samples[i:i + files.batch] for i in range(0, len(samples), files.batch)]
        calibration = work.calibrate({key: [{signature["inputs"][0]: x} for x in stacks]})
        work.quantize(calibration).export_model(str(file(files, "int8")))


def load(files, threads):
    if files.workload["kind"] not in ("network", "chain"):
        raise Skip("LiteRT runs networks only")
    target = file(files, files.precision)
    if not target.exists():  # in a process of its own: PyTorch must not count as LiteRT's memory
        command = [sys.executable, __file__, "--convert", str(files.directory), json.dumps(files.workload)]
        done = subprocess.run(command, stdout=sys.stderr)
        if done.returncode or not target.exists():
            raise Skip("litert-torch or ai-edge-quantizer could not convert it")
    model = Interpreter(str(target), num_threads=threads)
    model.allocate_tensors()
    first, last = model.get_input_details()[0], model.get_output_details()[0]

    def code(x):
        scale, zero = first["quantization"]
        if first["dtype"] == np.float32:
            return np.ascontiguousarray(x)
        return np.clip(np.rint(x / scale) + zero, -128, 127).astype(first["dtype"])

    batches = [code(x) for x in files.batches()]

    def infer(x):
        model.set_tensor(first["index"], x)
        model.invoke()

    def outputs():
        for x in batches:
            infer(x)
            y = model.get_tensor(last["index"]).astype(np.float32)
            if last["dtype"] != np.float32:
                scale, zero = last["quantization"]
                y = (y - zero) * scale
            yield y

    setting = "XNNPACK" if first["dtype"] == np.float32 else "XNNPACK, codes in and out"
    return Model(lambda: infer(batches[0]), outputs, setting)


if __name__ == "__main__":
    if sys.argv[1] == "--convert":
        convert(Files(Path(sys.argv[2]), json.loads(sys.argv[3])))
    else:
        serve(load)
