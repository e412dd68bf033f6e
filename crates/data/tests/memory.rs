//! Decoding takes the memory that its limit is checked against.
#![cfg(feature = "images")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ColorType, DynamicImage, ImageEncoder};
use ottava_data::decode_image;

struct Peak;

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system allocator unchanged; counting touches two atomics and
// allocates nothing itself.
unsafe impl GlobalAlloc for Peak {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let taken = TAKEN.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(taken, Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise about `start` and `layout` is passed on.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Peak = Peak;

/// A header of EXIF that says: turned by a quarter.
const TURNED: [u8; 26] =
    [73, 73, 42, 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0];

/// One test: the count is of all threads.
#[test]
fn decoding_takes_what_its_limit_counts() {
    use ColorType::{L8, L16, La8, La16, Rgb8, Rgb16, Rgba8, Rgba16};
    let (width, height) = (640, 480);
    let area = (width * height) as usize;
    for color in [L8, La8, Rgb8, Rgba8, L16, La16, Rgb16, Rgba16] {
        let picture = DynamicImage::new(width, height, color);
        let (mut png, mut webp) = (Vec::new(), Vec::new());
        let mut encoder = PngEncoder::new(&mut png);
        encoder.set_exif_metadata(TURNED.into()).unwrap();
        picture.write_with_encoder(encoder).unwrap();
        let mut encoder = WebPEncoder::new_lossless(&mut webp);
        encoder.set_exif_metadata(TURNED.into()).unwrap();
        picture.write_with_encoder(encoder).unwrap();
        for bytes in [&png, &webp] {
            let before = TAKEN.load(Ordering::Relaxed);
            PEAK.store(before, Ordering::Relaxed);
            let shown = decode_image("x", bytes).unwrap();
            let peak = PEAK.load(Ordering::Relaxed) - before;
            assert_eq!(shown.shape(), [3, width as usize, height as usize]);
            let counted = area * (usize::from(color.bytes_per_pixel()).max(4) + 3);
            // Rows and windows of a decoder are no pictures.
            let beside = 256 << 10;
            assert!(peak <= counted + beside, "{color:?}: {peak} bytes, not {counted}");
        }
    }
}
