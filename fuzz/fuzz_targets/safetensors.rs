//! Weights in safetensors: an error, or tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ottava::interop::safetensors_from_bytes;

fuzz_target!(|bytes: &[u8]| {
    let _ = safetensors_from_bytes("fuzz", bytes);
});
