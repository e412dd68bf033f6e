"""OpenBLAS, as NumPy's wheels bring it: f32 products into a given array."""

import numpy as np
from serve import Model, Skip, aligned, serve


def load(files, threads):
    if files.workload["kind"] != "gemm" or files.precision != "f32":
        raise Skip("multiplies f32 matrices only")
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    if "openblas" not in blas["name"].lower():
        raise Skip(f"this NumPy multiplies with {blas['name']}")
    a, b = files.gemm()
    c = aligned(np.empty((a.shape[0], b.shape[1]), np.float32))

    def outputs():
        np.matmul(a, b, out=c)
        yield c

    return Model(lambda: np.matmul(a, b, out=c), outputs, f"sgemm of {blas['name']} {blas['version']}")


if __name__ == "__main__":
    serve(load)
