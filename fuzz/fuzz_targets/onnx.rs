//! Networks in ONNX files: an error, or a graph that can be written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ottava::interop::{OnnxOptions, graph_to_onnx, onnx_from_bytes};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(network) = onnx_from_bytes("fuzz", bytes) {
        let _ = graph_to_onnx(&network.graph, &network.metadata, &OnnxOptions::default());
    }
});
