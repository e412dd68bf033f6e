use anyhow::Result;
use ottava_peers::{Aligned, Files, Model};
use ottava_tensor::conv::int8::{Algorithm, Int8Conv, Output, Requantize};
use ottava_tensor::conv::{ConvAttrs, ConvGeometry};
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
    if files.precision == "codes" {
        return codes(files);
    }
    let level = Level::current();
    let b: Vec<i8> = bytemuck::allocation::cast_vec(files.bytes("b.s8")?);
    let product = Int8Gemm::new(level, k, n, &b)?;
    let scratch = vec![0; product.scratch_len(m)];
    let (a, c) = (Aligned::new(&files.bytes("a.u8")?), Aligned::new(&vec![0; m * n]));
    Ok(Box::new(Integer { product, level, m, a, c, scratch }))
}

/// The product as a layer computes it: requantized where the sums are.
fn codes(files: &Files) -> Result<Box<dyn Model>> {
    let ([m, n, k], level) = (files.mnk, Level::current());
    let scale = files.floats("scale")?[0];
    // Rows of weights are output channels.
    let b = files.bytes("b.s8")?;
    let weights: Vec<i8> = (0..n * k).map(|at| b[at % k * n + at / k] as i8).collect();
    let geometry = ConvGeometry::new([1, k, m, 1], [n, k, 1, 1], ConvAttrs::new(1, 0))?;
    let product =
        Int8Conv::new(level, &weights, geometry.weight_shape(), geometry.attrs, Algorithm::Auto)?;
    let scratch = vec![0; product.scratch_len(&geometry)];
    let law = Requantize {
        bias: vec![0; n],
        multiplier: vec![1.0 / scale; n],
        zero_point: 128,
        low: 0,
        high: 255,
    };
    let (a, c) = (Aligned::new(&files.bytes("a.u8")?), Aligned::new(&vec![0; m * n]));
    Ok(Box::new(Codes { product, geometry, law, level, a, c, scratch }))
}

struct Codes {
    product: Int8Conv,
    geometry: ConvGeometry,
    law: Requantize,
    level: Level,
    a: Aligned<u8>,
    c: Aligned<u8>,
    scratch: Vec<u8>,
}

impl Model for Codes {
    fn setting(&self) -> String {
        format!("Int8Conv 1×1 u8×s8→u8, {}", self.level.name())
    }

    fn run(&mut self) -> Result<()> {
        let output = Output::Requantize(&self.law, &mut self.c);
        self.product.run(&self.geometry, &self.a, 0, output, &mut self.scratch);
        Ok(())
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        self.run()?;
        Ok(self.c.iter().map(|&code| f32::from(code)).collect())
    }
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
    a: Aligned<u8>,
    c: Aligned<i32>,
    scratch: Vec<u8>,
}

impl Model for Integer {
    fn setting(&self) -> String {
        format!("Int8Gemm u8×s8→i32, {}", self.level.name())
    }

    fn run(&mut self) -> Result<()> {
        let output = Output::Accumulate(&mut self.c);
        self.product.run(self.m, &self.a[..], 0, output, &mut self.scratch);
        Ok(())
    }

    fn outputs(&mut self) -> Result<Vec<f32>> {
        self.run()?;
        Ok(self.c.iter().map(|&sum| sum as f32).collect())
    }
}
