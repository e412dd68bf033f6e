"""ONNX Runtime: all graph optimisations, intra-op threads as told, static shapes, bound inputs."""

import numpy as np
import onnxruntime as ort
from serve import Model, Skip, serve


def session(path, threads):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load(files, threads):
    kind = files.workload["kind"]
    if kind == "training":
        raise Skip("the inference package does not train")
    if kind == "gemm":
        made = session(files.path(f"{files.precision}.onnx"), threads)
        inputs = [files.gemm()[0]]
        setting = {"f32": "MatMul", "int8": "MatMulInteger u8×s8→i32", "codes": "QLinearMatMul u8×s8→u8"}[files.precision]
    else:
        made = session(files.onnx(), threads)
        inputs = files.batches()
        setting = "graph optimisations all" + (", QDQ u8×s8 per channel" if files.precision == "int8" else "")
    name = made.get_inputs()[0].name
    binding = made.io_binding()
    value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(inputs[0]))
    binding.bind_ortvalue_input(name, value)
    binding.bind_output(made.get_outputs()[0].name)
    return Model(lambda: made.run_with_iobinding(binding),
                 lambda: (made.run(None, {name: x})[0] for x in inputs), setting)


if __name__ == "__main__":
    serve(load)
