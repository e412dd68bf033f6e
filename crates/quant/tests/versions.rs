//! Files of every version there was keep loading: `fixtures/version-N.ottava`.
//!
//! A new version gets a file of its own, written once; those of the versions before it stay as they are.

use std::path::{Path, PathBuf};

use ottava_quant::{Activation, Instr, Program, QParams, QuantizedLayer, Window};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

fn fixture(version: usize) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/version-{version}.ottava"))
}

/// What version 1 could say.
fn version_1() -> Program {
    let grid = |scale: f32, zero, high| QParams::new(scale, zero, 0..=high).unwrap();
    let layer = |shape: &[usize], modulus: usize| {
        let half = modulus as i32 / 2;
        let code = |i: usize| (((i * 31) % modulus) as i32 - half) as i8;
        QuantizedLayer {
            codes: Tensor::new(shape, (0..shape.iter().product()).map(code).collect::<Vec<i8>>())
                .unwrap(),
            scales: (0..shape[0]).map(|c| 0.01 + c as f32 / 512.0).collect(),
            bias: (0..shape[0]).map(|c| 200 * c as i32 - 300).collect(),
        }
    };
    let mut b = Program::builder(&[2, 6, 5]).unwrap();
    let x = b.push("input.quantize", Instr::Quantize(grid(0.03, 120, 255)), &[b.input()]).unwrap();
    let stem = Instr::Conv {
        layer: layer(&[4, 2, 3, 3], 255),
        attrs: ConvAttrs::new(1, 1),
        output: grid(0.05, 7, 255),
        activation: Activation::RELU,
    };
    let a = b.push("stem", stem, &[x]).unwrap();
    let depthwise = Instr::Conv {
        layer: layer(&[4, 1, 3, 3], 15), // four bits
        attrs: ConvAttrs {
            groups: 4,
            dilation: [2, 1],
            padding: [2, 1, 2, 1],
            ..ConvAttrs::default()
        },
        output: grid(0.04, 100, 200),
        activation: Activation::NONE,
    };
    let x = b.push("depthwise", depthwise, &[a]).unwrap();
    let x = b
        .push(
            "add",
            Instr::Add { output: grid(0.06, 90, 255), activation: Activation::RELU },
            &[a, x],
        )
        .unwrap();
    let x = b.push("max", Instr::MaxPool(Window::new(3, 2, 1)), &[x]).unwrap();
    let x = b.push("relu", Instr::Clip(Activation::RELU), &[x]).unwrap();
    let x = b.push("slice", Instr::Slice { axis: 2, start: 0, end: 3, step: 2 }, &[x]).unwrap();
    let x = b.push("pad", Instr::Pad { axis: 1, before: 1, after: 1 }, &[x]).unwrap();
    let mean = |window| Instr::AvgPool { window, count_padding: true, output: grid(0.05, 80, 255) };
    let x = b.push("window", mean(Some(Window::new(2, 1, 1))), &[x]).unwrap();
    let x = b.push("mean", mean(None), &[x]).unwrap();
    let x = b.push("flatten", Instr::Flatten, &[x]).unwrap();
    let fc = Instr::Linear {
        layer: layer(&[3, 6], 255),
        output: grid(0.1, 128, 255),
        activation: Activation::NONE,
    };
    let x = b.push("fc", fc, &[x]).unwrap();
    let mut program = b.finish(x).unwrap();
    for (key, value) in [
        ("kind", "int8"),
        ("architecture", "onnx"),
        ("classes", "3"),
        ("in_channels", "2"),
        ("input", "2x6x5"),
        ("class_names", "cat\ndog\ngreen frog"),
        ("preprocess.pixels", "normalized"),
        ("preprocess.mean", "0.5,0.25"),
        ("preprocess.std", "0.25,0.5"),
    ] {
        program.metadata_mut().insert(key.into(), value.into());
    }
    program
}

#[test]
fn a_file_of_version_1_is_the_program_it_was() {
    let program = Program::load(fixture(1)).unwrap();
    let expected = version_1();
    assert_eq!(program.nodes(), expected.nodes());
    assert_eq!(program.output(), expected.output());
    assert_eq!(program.metadata(), expected.metadata());
}
