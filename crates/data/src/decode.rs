use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use crate::{Error, Image, Result};

/// Larger files are no pictures for a classifier.
const MAX_FILE: u64 = 256 << 20;
/// Pixels along a side, and bytes that decoding may take.
const MAX_SIDE: u32 = 1 << 15;
const MAX_MEMORY: u64 = 1 << 30;

/// Reads a JPEG, PNG or WebP file as RGB, upright (its EXIF orientation is applied).
///
/// Gray values become three equal channels, CMYK is converted, transparency is dropped: as Pillow's
/// `convert("RGB")`. The content decides about the format, not the name.
///
/// # Errors
/// [`Error::Io`], or [`Error::Format`] for a damaged file, another kind of file, or more than
/// 32768 pixels along a side.
pub fn read_image(path: &Path) -> Result<Image> {
    let file = File::open(path).map_err(|error| Error::io(path, &error))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| Error::io(path, &error))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::format(path, MAX_FILE, format!("longer than {MAX_FILE} bytes")));
    }
    decode_image(&path.display().to_string(), &bytes)
}

/// The same from memory; `name` stands for the path in errors.
///
/// # Errors
/// As [`read_image`].
pub fn decode_image(name: &str, bytes: &[u8]) -> Result<Image> {
    let refuse = |error: image::ImageError| {
        // Some decoders put line breaks into their messages.
        let reason = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Error::format(Path::new(name), 0, format!("not decodable: {reason}"))
    };
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_MEMORY);
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| refuse(error.into()))?;
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(refuse)?;
    // A damaged EXIF block is no reason to lose the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(refuse)?;
    picture.apply_orientation(orientation);
    let picture = picture.into_rgb8();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Image::new(3, height, width, picture.into_raw())
}
