use std::ops::Range;

use anyhow::Result;
use ottava_peers::{Files, Model};
use ottava_tensor::gemm::{PackedMatrix, int8::Int8Gemm};
use ottava_tensor::{Level, Tensor};

/// The product of a workload.
pub fn load(files: &Files) -> Result<Box<dyn Model>> {
    let [m, n, k] = files.mnk;
    if files.precision == "f32" {
        let a = Tensor::new(&[m, k], files.floats("a.f32")?)?;
        let b = Tensor::new(&[k, n], files.floats("b.f32")?)?;
        return Ok(Box::new(Float { a, b: PackedMatrix::new(&b)? }));
    }
    let level = Level::current();
    let b: Vec<i8> = bytemuck::allocation::cast_vec(files.bytes("b.s8")?);
    let product = Int8Gemm::new(level, k, n, &b)?;
    let scratch = vec![0; product.scratch_len(m)];
    let a = files.bytes("a.u8")?;
    // At a cache line, as allocators of other engines have it.
    let c = vec![0; m * n + 16];
    let start = c.as_ptr().align_offset(64);
    Ok(Box::new(Integer { product, level, m, a, c, used: start..start + m * n, scratch }))
}

struct Float {
    a: Tensor<f32>,
    b: PackedMatrix,
}

impl Model for Float {
    fn setting(&self) -> String {
        format!("PackedMatrix, {}", Level::current().name())
    }

    fn run(&mut self) -> Result<()> {
        self.b.multiply(&self.a)?;
        Ok(())
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        Ok(self.b.multiply(&self.a)?.to_vec())
    }
}

struct Integer {
    product: Int8Gemm,
    level: Level,
    m: usize,
    a: Vec<u8>,
    c: Vec<i32>,
    /// The part of `c` that is the output.
    used: Range<usize>,
    scratch: Vec<u8>,
}

impl Model for Integer {
    fn setting(&self) -> String {
        format!("Int8Gemm u8×s8→i32, {}", self.level.name())
    }

    fn run(&mut self) -> Result<()> {
        let c = &mut self.c[self.used.clone()];
        self.product.run(self.m, &self.a, 0, c, &mut self.scratch);
        Ok(())
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        self.run()?;
        Ok(self.c[self.used.clone()].iter().map(|&sum| sum as f32).collect())
    }
}
