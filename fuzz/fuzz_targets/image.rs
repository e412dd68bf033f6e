//! JPEG, PNG and WebP: an error, or a picture that can be brought to a network's size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ottava::data::{Preprocess, decode_image};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = decode_image("fuzz", bytes) {
        let preprocess: Preprocess = "imagenet,resize=32,crop=28".parse().expect("a preset");
        let image = preprocess.reshape(image);
        assert_eq!(image.shape(), [3, 28, 28]);
    }
});
