//! PyTorch state dicts: whatever the pickle says, nothing but tensors comes of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ottava::interop::pth_from_bytes;

/// How an entry of a zip archive's directory begins, and where its checksum lies; zero says that there is none.
const ENTRY: &[u8] = b"PK\x01\x02";
const SUM: std::ops::Range<usize> = 16..20;

fuzz_target!(|bytes: &[u8]| {
    // The sums of an archive would keep damage from what it holds.
    let mut bytes = bytes.to_vec();
    for at in 0..bytes.len().saturating_sub(SUM.end) {
        if bytes[at..].starts_with(ENTRY) {
            bytes[at..][SUM].fill(0);
        }
    }
    let _ = pth_from_bytes("fuzz", &bytes);
});
