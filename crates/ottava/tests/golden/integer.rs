//! Integer operators: every byte.

use ottava::quant::{Activation, QParams, QTensor, QuantizedLayer, add_codes};
use ottava::tensor::conv::int8::{Algorithm, Int8Conv, Output};
use ottava::tensor::conv::{ConvAttrs, ConvGeometry};
use ottava::tensor::{Level, Tensor};

use crate::case::Case;

fn grid(case: &Case, name: &str) -> QParams {
    let zero_point = case.number(&format!("{name}_zero_point")) as i32;
    QParams::new(case.number(&format!("{name}_scale")) as f32, zero_point, 0..=255).unwrap()
}

fn codes(case: &Case, name: &str) -> Tensor<u8> {
    let values: Vec<u8> = case.integers(name).iter().map(|&q| q as u8).collect();
    Tensor::new(&case.integer_shape(name), values).unwrap()
}

/// On every instruction set, with the layer's own requantization.
pub fn qlinear_conv(case: &Case) {
    let attrs = ConvAttrs {
        stride: case.pair("stride"),
        padding: case.padding(),
        dilation: [1, 1],
        groups: case.number("groups") as usize,
    };
    let (x, y) = (QTensor::new(codes(case, "in.x"), grid(case, "x")), grid(case, "y"));
    let weight: Vec<i8> = case.integers("param.weight").iter().map(|&q| q as i8).collect();
    let layer = QuantizedLayer {
        codes: Tensor::new(&case.integer_shape("param.weight"), &weight).unwrap(),
        scales: case.float("param.weight_scale").to_vec(),
        bias: case.integers("param.bias").iter().map(|&b| b as i32).collect(),
    };
    let requantize = layer.requantize(x.params().scale(), y, Activation::NONE);
    let shape = layer.codes.dims("qlinear_conv").unwrap();
    let geometry =
        ConvGeometry::new(x.codes().dims("qlinear_conv").unwrap(), shape, attrs).unwrap();
    let input = x.codes().channels_last();
    for level in Level::available() {
        let conv = Int8Conv::new(level, &weight, shape, attrs, Algorithm::Auto).unwrap();
        let mut scratch = Tensor::<u8>::zeros(&[conv.scratch_len(&geometry)]);
        let mut got = Tensor::<u8>::zeros_channels_last(&geometry.output_shape());
        let sink = Output::Requantize(&requantize, got.data_mut());
        let zero_point = x.params().zero_point() as u8;
        conv.run(&geometry, input.as_nhwc().unwrap(), zero_point, sink, scratch.data_mut());
        assert_eq!(got, codes(case, "out.y"), "{} on {}", case.name, level.name());
    }
}

pub fn qlinear_add(case: &Case) {
    let add = add_codes(grid(case, "a"), grid(case, "b"), grid(case, "y"), Activation::NONE);
    let (a, b) = (codes(case, "in.a"), codes(case, "in.b"));
    let got = a.zip_map("add", &b, |a, b| add.apply(a, b)).unwrap();
    assert_eq!(got, codes(case, "out.y"), "{}", case.name);
}
