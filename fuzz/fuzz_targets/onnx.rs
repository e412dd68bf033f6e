//! Networks in ONNX files: an error, or a graph or a program that can be written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ottava::interop::{
    OnnxFormat, OnnxOptions, graph_to_onnx, onnx_from_bytes, onnx_program_from_bytes,
    program_to_onnx,
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(network) = onnx_from_bytes("fuzz", bytes) {
        let _ = graph_to_onnx(&network.graph, &network.metadata, &OnnxOptions::default());
    }
    let Ok(program) = onnx_program_from_bytes("fuzz", bytes) else { return };
    for format in [OnnxFormat::Qdq, OnnxFormat::QOperator] {
        let options = OnnxOptions { format, ..OnnxOptions::default() };
        program_to_onnx(&program, &options).expect("versions that can be written");
    }
});
