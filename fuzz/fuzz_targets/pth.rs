//! PyTorch state dicts: whatever the pickle says, nothing but tensors comes of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ottava::interop::pth_from_bytes;

fuzz_target!(|bytes: &[u8]| {
    let _ = pth_from_bytes("fuzz", bytes);
});
