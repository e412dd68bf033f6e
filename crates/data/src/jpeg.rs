//! JPEG files, whole ones only.
//!
//! Decoders for people paint what is missing of a damaged file gray; a network would train on it. This one
//! refuses what ends early, as Pillow does, and what its Huffman codes or markers show to be damaged.

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::decode::{MAX_MEMORY, MAX_SIDE};

/// The picture, upright, or what is wrong with the file.
pub(crate) fn decode(bytes: &[u8]) -> Result<DynamicImage, String> {
    if !is_whole(bytes) {
        return Err(format!("truncated: its {} bytes have no end-of-image marker", bytes.len()));
    }
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(MAX_SIDE as usize)
        .set_max_height(MAX_SIDE as usize);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| error.to_string())?;
    let info = decoder.info().ok_or("no size")?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    // A pixel in RGB, and in a progressive file the coefficients of each of its components.
    let bytes_per_pixel = 3 + 2 * u64::from(info.components);
    if width as u64 * height as u64 * bytes_per_pixel > MAX_MEMORY {
        return Err(format!("{width}×{height} pixels take more than {MAX_MEMORY} bytes to decode"));
    }
    let gray = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let (channels, colors) = if gray { (1, ColorSpace::Luma) } else { (3, ColorSpace::RGB) };
    // Headers may be odd, many cameras write them so; the pixels may not.
    let options = decoder.options().set_strict_mode(true).jpeg_set_out_colorspace(colors);
    decoder.set_options(options);
    let mut pixels = vec![0; width * height * channels];
    if decoder.output_buffer_size() != Some(pixels.len()) {
        return Err(format!("its components do not make {channels} channels"));
    }
    decoder.decode_into(&mut pixels).map_err(|error| error.to_string())?;

    // A damaged EXIF block is no reason to lose the picture.
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let (width, height) = (width as u32, height as u32);
    let picture = if gray {
        GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8)
    } else {
        RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8)
    };
    let mut picture = picture.ok_or("no pixels")?;
    picture.apply_orientation(orientation.unwrap_or(Orientation::NoTransforms));
    Ok(picture)
}

/// Whether the markers lead to that of the image's end. (A preview inside the file has one, too, but lies
/// within a segment.)
fn is_whole(bytes: &[u8]) -> bool {
    let mut at = 0;
    while let Some(distance) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xFF))
    {
        at += distance + 1;
        match bytes.get(at) {
            // Fill bytes; the next byte decides.
            Some(0xFF) => {}
            // A stuffed byte of data, a restart, the start of the image, one without a length.
            Some(0x00 | 0x01 | 0xD0..=0xD8) => at += 1,
            Some(0xD9) => return true,
            Some(_) => match bytes.get(at + 1..at + 3) {
                Some(&[high, low]) => at += 1 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn the_end_is_that_of_the_image_not_of_a_preview_in_it() {
        let start = [0xFF, 0xD8];
        let preview = [0xFF, 0xE1, 0x00, 0x06, 0xFF, 0xD8, 0xFF, 0xD9];
        let scan = [0xFF, 0xDA, 0x00, 0x02, 7, 0xFF, 0x00, 0xFF, 0xD3, 9];
        let end = [0xFF, 0xFF, 0xD9, 1, 2];
        let file = [&start[..], &preview, &scan, &end].concat();
        assert!(is_whole(&file));
        // Two bytes follow the image.
        for cut in 0..file.len() - 2 {
            assert!(!is_whole(&file[..cut]), "{cut}");
        }
    }
}
