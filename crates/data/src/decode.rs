use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::error::{LimitError, LimitErrorKind};
use image::metadata::Orientation;
use image::{
    DynamicImage, ImageBuffer, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult,
    Limits, Pixel, Rgb, RgbImage,
};

use crate::{Error, Image, Result, jpeg};

/// Larger files are no pictures for a classifier.
const MAX_FILE: u64 = 256 << 20;
/// Pixels along a side, and bytes that decoding may take.
pub(crate) const MAX_SIDE: u32 = 1 << 15;
pub(crate) const MAX_MEMORY: u64 = 1 << 30;

/// Reads a JPEG, PNG or WebP file as RGB, upright (its EXIF orientation is applied).
///
/// Gray values become three equal channels, CMYK is converted, transparency is dropped, and of 16 bits the upper
/// eight count: as Pillow's `convert("RGB")`, but that clips gray of 16 bits at 255. The content decides about the
/// format, not the name.
///
/// # Errors
/// [`Error::Io`], or [`Error::Format`] for another kind of file, more than 32768 pixels along a side, pixels of
/// more than a gigabyte, or a damaged file: also a JPEG that breaks off, which other decoders complete in gray.
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
    let refuse = |reason: String| {
        // Some decoders put line breaks into their messages.
        let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
        Error::format(Path::new(name), 0, format!("not decodable: {reason}"))
    };
    let picture = match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => jpeg::decode(bytes),
        Ok(format @ (ImageFormat::Png | ImageFormat::WebP)) => {
            png_or_webp(bytes, format).map_err(|error| error.to_string())
        }
        _ if bytes.is_empty() => Err("the file is empty".into()),
        _ => {
            let (length, start) = (bytes.len(), &bytes[..bytes.len().min(8)]);
            Err(format!("no JPEG, PNG or WebP picture; its {length} bytes begin {start:02x?}"))
        }
    };
    let picture = picture.map_err(refuse)?;
    let picture = picture.into_rgb8();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Image::new(3, height, width, picture.into_raw())
}

/// A PNG or WebP picture, upright.
fn png_or_webp(bytes: &[u8], format: ImageFormat) -> ImageResult<DynamicImage> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_MEMORY);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    // The limits above are not of the output. RGB is made beside that, or beside the RGBA that WebP decodes by way
    // of, or beside itself where the picture has to be turned.
    let (width, height) = decoder.dimensions();
    let area = u64::from(width) * u64::from(height);
    if decoder.total_bytes().max(4 * area).saturating_add(3 * area) > MAX_MEMORY {
        return Err(ImageError::Limits(LimitError::from_kind(LimitErrorKind::InsufficientMemory)));
    }
    // A damaged EXIF block is no reason to lose the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::ImageRgb8(rgb8(DynamicImage::from_decoder(decoder)?));
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// In one step, whatever the picture is of.
fn rgb8(picture: DynamicImage) -> RgbImage {
    match picture {
        DynamicImage::ImageLuma16(wide) => upper_bits(&wide),
        DynamicImage::ImageLumaA16(wide) => upper_bits(&wide),
        DynamicImage::ImageRgb16(wide) => upper_bits(&wide),
        DynamicImage::ImageRgba16(wide) => upper_bits(&wide),
        picture => picture.into_rgb8(),
    }
}

/// The upper eight of sixteen bits; `into_rgb8` would round.
fn upper_bits<P: Pixel<Subpixel = u16>>(wide: &ImageBuffer<P, Vec<u16>>) -> RgbImage {
    RgbImage::from_fn(wide.width(), wide.height(), |x, y| {
        Rgb(wide.get_pixel(x, y).to_rgb().0.map(|value| (value >> 8) as u8))
    })
}
