"""OpenVINO: latency hint, one stream, f32 kept f32, int8 by importing the QDQ file."""

import numpy as np
import openvino as ov
from serve import Model, Skip, serve


def load(files, threads):
    kind = files.workload["kind"]
    if kind == "training":
        raise Skip("OpenVINO does not train")
    core = ov.Core()
    if kind == "gemm":
        path = files.path({"f32": "f32.onnx", "int8": "qdq.onnx", "codes": "qdq-codes.onnx"}[files.precision])
        inputs = [files.gemm()[0]]
    else:
        path, inputs = files.onnx(), files.batches()
    compiled = core.compile_model(str(path), "CPU", {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(np.ascontiguousarray(inputs[0])))

    def outputs():
        for x in inputs:
            other = compiled.create_infer_request()
            other.set_input_tensor(ov.Tensor(np.ascontiguousarray(x)))
            other.infer()
            yield np.array(other.get_output_tensor(0).data)

    setting = "latency hint, 1 stream" + ("" if files.precision == "f32" else ", QDQ u8×s8")
    # Results stay in the request's memory, as with the other engines.
    return Model(lambda: request.infer(share_outputs=True), outputs, setting)


if __name__ == "__main__":
    serve(load)
