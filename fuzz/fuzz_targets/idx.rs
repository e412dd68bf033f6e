//! IDX files, plain and gzip: an error, or as many bytes as the dimensions say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ottava::data::idx_from_bytes;

fuzz_target!(|bytes: &[u8]| {
    for rank in [1, 3] {
        if let Ok((dims, data)) = idx_from_bytes("fuzz", bytes, rank) {
            assert_eq!(dims.iter().product::<usize>(), data.len());
        }
    }
});
