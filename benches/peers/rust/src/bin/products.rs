//! f32 products by crates that do nothing else: `gemm` and `matrixmultiply`. Each is an engine of its
//! own, told apart by the name it is started under.

use anyhow::{Result, bail, ensure};
use gemm::Parallelism;
use ottava_peers::{Aligned, Files, Kind, Model, serve};

/// Which crate multiplies.
#[derive(Clone, Copy, Debug)]
enum By {
    Gemm,
    MatrixMultiply,
}

struct Product {
    by: By,
    threads: usize,
    mnk: [usize; 3],
    a: Aligned<f32>,
    b: Aligned<f32>,
    c: Aligned<f32>,
}

impl Model for Product {
    fn setting(&self) -> String {
        match self.by {
            By::Gemm => format!("gemm, Rayon({})", self.threads),
            By::MatrixMultiply => format!("sgemm, threading, {}", self.threads),
        }
    }

    fn run(&mut self) -> Result<()> {
        let [m, n, k] = self.mnk;
        let (a, b, c) = (self.a.as_ptr(), self.b.as_ptr(), self.c.as_mut_ptr());
        let (wide, deep) = (n as isize, k as isize);
        match self.by {
            By::Gemm => {
                let parallelism = match self.threads {
                    1 => Parallelism::None,
                    threads => Parallelism::Rayon(threads),
                };
                // SAFETY: `load` checked that the row-major matrices hold `m·k`, `k·n` and `m·n`
                // elements; `c` overlaps neither.
                unsafe {
                    gemm::gemm(
                        m,
                        n,
                        k,
                        c,
                        1,
                        wide,
                        false,
                        a,
                        1,
                        deep,
                        b,
                        1,
                        wide,
                        0.0,
                        1.0,
                        false,
                        false,
                        false,
                        parallelism,
                    );
                }
            }
            By::MatrixMultiply => {
                // SAFETY: as above.
                unsafe {
                    matrixmultiply::sgemm(m, k, n, 1.0, a, deep, 1, b, wide, 1, 0.0, c, wide, 1);
                }
            }
        }
        Ok(())
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        self.run()?;
        Ok(self.c.to_vec())
    }
}

fn load(by: By, files: &Files, threads: usize) -> Result<Box<dyn Model>> {
    if files.kind != Kind::Gemm || files.precision != "f32" {
        bail!("multiplies f32 matrices only");
    }
    let [m, n, k] = files.mnk;
    let (a, b) = (files.floats("a.f32")?, files.floats("b.f32")?);
    ensure!(a.len() == m * k && b.len() == k * n, "the matrices are of another size");
    let (a, b, c) = (Aligned::new(&a), Aligned::new(&b), Aligned::new(&vec![0.0; m * n]));
    Ok(Box::new(Product { by, threads, mnk: [m, n, k], a, b, c }))
}

fn main() -> Result<()> {
    let name = std::env::args().nth(3).unwrap_or_default();
    let by = match name.as_str() {
        "gemm" => By::Gemm,
        "matrixmultiply" => By::MatrixMultiply,
        name => bail!("`{name}` is neither gemm nor matrixmultiply"),
    };
    serve(move |files, threads| load(by, files, threads))
}
