//! Quantized files that ONNX Runtime's quantizer and our exporter wrote, against the answers of ONNX Runtime
//! and of the program that was exported (`tools/make_onnx_fixtures.py`).
#![cfg(all(feature = "onnx", feature = "safetensors"))]

use std::path::{Path, PathBuf};

use ottava_interop::{
    OnnxFormat, OnnxOptions, onnx_from_bytes, onnx_is_quantized, onnx_program_from_bytes,
    program_to_onnx, read_onnx_program, read_safetensors,
};
use ottava_quant::{Activation, Engine, Instr, Program, QParams, QuantizedLayer, Window};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;
use proptest::prelude::*;

const FILES: [&str; 5] =
    ["qdq-u8s8", "qdq-s8s8", "qdq-float-weights", "qoperator-u8s8", "qoperator-u8u8"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx").join(name)
}

fn answer(program: &Program, x: &Tensor<f32>) -> Vec<f32> {
    Engine::new(program).unwrap().run(x, &mut Default::default()).unwrap().to_vec()
}

#[test]
fn files_of_onnx_runtimes_quantizer_give_its_bytes() {
    for name in FILES {
        let bytes = std::fs::read(fixture(&format!("{name}.onnx"))).unwrap();
        assert!(onnx_is_quantized(name, &bytes).unwrap());
        let program = read_onnx_program(&fixture(&format!("{name}.onnx"))).unwrap();
        let sample = read_safetensors(&fixture(&format!("{name}.safetensors"))).unwrap();
        let expected = sample.get("y").unwrap().to_vec();
        assert_eq!(answer(&program, sample.get("x").unwrap()), expected, "{name}");
        // Layers keep the names of the modules whose weights they have.
        assert!(program.nodes().iter().any(|node| node.name == "dw"), "{name}");
        let refusal = onnx_from_bytes(name, &bytes).unwrap_err().to_string();
        assert!(refusal.contains("quantized already"), "{refusal}");
    }
    let float = std::fs::read(fixture("residual.onnx")).unwrap();
    assert!(!onnx_is_quantized("residual", &float).unwrap());
    let refusal = onnx_program_from_bytes("residual", &float).unwrap_err().to_string();
    assert!(refusal.contains("QuantizeLinear"), "{refusal}");
}

/// Every instruction that ONNX can say, ReLUs on grids whose zero lies in the middle included.
fn program(signed: bool) -> Program {
    let grid = |scale: f32, zero| {
        let (zero, codes) = if signed { (zero - 128, -128..=127) } else { (zero, 0..=255) };
        QParams::new(scale, zero, codes).unwrap()
    };
    let layer = |shape: &[usize], scale: f32| {
        let codes = (0..shape.iter().product()).map(|i: usize| (i * 89 % 255) as u8 as i8);
        QuantizedLayer {
            codes: Tensor::new(shape, codes.collect::<Vec<i8>>()).unwrap(),
            scales: (0..shape[0]).map(|c| scale * (1.0 + c as f32 / 7.0)).collect(),
            bias: (0..shape[0]).map(|c| 300 * c as i32 - 500).collect(),
        }
    };
    let mut b = Program::builder(&[2, 9, 8]).unwrap();
    let x = b.push("in", Instr::Quantize(grid(0.02, 128)), &[b.input()]).unwrap();
    let conv = |shape: &[usize], attrs, zero, activation| Instr::Conv {
        layer: layer(shape, 0.004),
        attrs,
        output: grid(0.04, zero),
        activation,
    };
    let same = ConvAttrs::new(1, 1);
    let a = b.push("stem", conv(&[6, 2, 3, 3], same, 0, Activation::RELU), &[x]).unwrap();
    let x = b.push("middle", conv(&[6, 6, 3, 3], same, 100, Activation::RELU), &[a]).unwrap();
    let depthwise = ConvAttrs { groups: 6, ..ConvAttrs::new(1, 1) };
    let x = b.push("dw", conv(&[6, 1, 3, 3], depthwise, 30, Activation::NONE), &[x]).unwrap();
    let x = b
        .push("add", Instr::Add { output: grid(0.06, 90), activation: Activation::RELU }, &[a, x])
        .unwrap();
    // Of one grid, and each rounded to another.
    let join = |axis, output| Instr::Concat { axis, output };
    let x = b.push("rows", join(2, None), &[x, x]).unwrap();
    let a = b.push("columns", join(2, Some(grid(0.05, 60))), &[x, a]).unwrap();
    let x = b.push("halves", Instr::Slice { axis: 2, start: 0, end: 27, step: 3 }, &[a]).unwrap();
    let x = b.push("max", Instr::MaxPool(Window::new(3, 2, 1)), &[x]).unwrap();
    let x = b.push("relu", Instr::Clip(Activation::RELU), &[x]).unwrap();
    let x = b.push("slice", Instr::Slice { axis: 2, start: 1, end: 5, step: 2 }, &[x]).unwrap();
    let x = b.push("pad", Instr::Pad { axis: 1, before: 1, after: 2 }, &[x]).unwrap();
    let mean =
        |window, zero| Instr::AvgPool { window, count_padding: true, output: grid(0.05, zero) };
    let x = b.push("window", mean(Some(Window::new(2, 1, 1)), 80), &[x]).unwrap();
    let x = b.push("mean", mean(None, 70), &[x]).unwrap();
    let x = b.push("flatten", Instr::Flatten, &[x]).unwrap();
    let fc = Instr::Linear {
        layer: layer(&[4, 9], 0.01),
        output: grid(0.1, 128),
        activation: Activation::NONE,
    };
    let x = b.push("fc", fc, &[x]).unwrap();
    let mut program = b.finish(x).unwrap();
    program.metadata_mut().insert("class_names".into(), "a\nb\nc\nd".into());
    program
}

#[test]
fn what_was_exported_is_read_as_itself() {
    let x: Vec<f32> = (0..3 * 144).map(|i| (i * 37 % 101) as f32 / 20.0 - 2.5).collect();
    let x = Tensor::new(&[3, 2, 9, 8], x).unwrap();
    for (signed, unsigned_weights) in [(false, false), (false, true), (true, false)] {
        let program = program(signed);
        for format in [OnnxFormat::Qdq, OnnxFormat::QOperator] {
            let options = OnnxOptions { format, unsigned_weights, ..Default::default() };
            let bytes = program_to_onnx(&program, &options).unwrap();
            let again = onnx_program_from_bytes("t", &bytes).unwrap();
            assert_eq!(answer(&again, &x), answer(&program, &x), "{options:?}");
            assert_eq!(again.metadata(), program.metadata());
            // Nothing was added: ReLUs are part of their layers again.
            let ops = |program: &Program| {
                program.nodes().iter().map(|node| node.instr.op()).collect::<Vec<_>>()
            };
            assert_eq!(ops(&again), ops(&program), "{options:?}");
        }
    }
}

#[test]
fn what_is_not_integers_throughout_is_refused_by_name() {
    let whole = std::fs::read(fixture("qdq-u8s8.onnx")).unwrap();
    let replaced = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let mut bytes = whole.clone();
        let places: Vec<usize> =
            (0..bytes.len() - from.len()).filter(|&i| bytes[i..].starts_with(from)).collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|i| bytes[i..i + to.len()].copy_from_slice(to));
        onnx_program_from_bytes("t", &bytes).unwrap_err().to_string()
    };
    let refusal = replaced(b"MaxPool", b"MaxPuul");
    assert!(refusal.contains("MaxPuul") && refusal.contains("not supported"), "{refusal}");
    let refusal = replaced(b"Flatten", b"Softmax");
    assert!(refusal.contains("(Softmax)"), "{refusal}");
    assert!(onnx_program_from_bytes("t", &whole[..whole.len() / 2]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn damage_is_never_a_panic(
        which in 0usize..5,
        cut in prop::option::of(0usize..12_000),
        hits in prop::collection::vec((any::<usize>(), any::<u8>()), 0..6),
    ) {
        let mut bytes = std::fs::read(fixture(&format!("{}.onnx", FILES[which]))).unwrap();
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        for (at, value) in hits {
            let len = bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at % len) {
                *byte = value;
            }
        }
        // What is read, runs.
        if let Ok(program) = onnx_program_from_bytes("t", &bytes) {
            let shape: Vec<usize> = [1].iter().chain(program.input_shape()).copied().collect();
            if shape.iter().product::<usize>() < 1 << 16 {
                answer(&program, &Tensor::zeros(&shape));
            }
        }
    }
}
