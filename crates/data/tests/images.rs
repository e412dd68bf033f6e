//! Pictures in files and their transforms, against Pillow and torchvision
//! (`tools/make_image_fixtures.py`).
#![cfg(feature = "images")]

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{ImageBuffer, Luma, Rgba};
use ottava_data::{
    Augment, Dataset, Error, Image, ImageFolder, Loader, LoaderOptions, OnBadImage, Preprocess,
    Split, decode_image, read_image,
};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn picture(name: &str) -> Image {
    read_image(&fixture(name)).unwrap()
}

/// The largest difference between two pictures, in steps of 1/255.
fn distance(a: &Image, b: &Image) -> u8 {
    assert_eq!(a.shape(), b.shape());
    a.pixels().iter().zip(b.pixels()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn resizing_and_cropping_equal_torchvision() {
    let source = picture("source.png");
    let preprocess: Preprocess = "unit,resize=24".parse().unwrap();
    for (name, image) in [
        ("resize-16x20", source.resize(16, 20)),
        ("resize-50x31", source.resize(50, 31)),
        ("resize-80x90", source.resize(80, 90)),
        ("resize-24", preprocess.reshape(source.clone())),
        ("center_crop-20x31", source.center_crop(20, 31)),
        ("center_crop-44x40", source.center_crop(44, 40)),
        ("crop-5-7-20x30-resize-24x24", source.crop(5, 7, 20, 30).resize(24, 24)),
    ] {
        assert_eq!(distance(&image, &picture(&format!("{name}.png"))), 0, "{name}");
    }
    let mut mirrored = source;
    mirrored.flip_horizontal();
    assert_eq!(mirrored, picture("flip.png"));
}

#[test]
fn colors_equal_torchvision() {
    let source = picture("source.png");
    let check = |name: String, change: &dyn Fn(&mut Image)| {
        let mut image = source.clone();
        change(&mut image);
        assert_eq!(distance(&image, &picture(&format!("{name}.png"))), 0, "{name}");
    };
    for factor in [0.3, 0.75, 1.4] {
        check(format!("brightness-{factor}"), &|image| image.adjust_brightness(factor));
        check(format!("contrast-{factor}"), &|image| image.adjust_contrast(factor));
        check(format!("saturation-{factor}"), &|image| image.adjust_saturation(factor));
    }
    for turn in [-0.4, 0.1, 0.25] {
        check(format!("hue-{turn}"), &|image| image.adjust_hue(turn));
    }
}

#[test]
fn files_of_every_kind_are_read_as_pillow_reads_them() {
    // Lossless formats exactly. JPEG leaves decoders some freedom: rounding, and how halved color
    // planes are brought back to full size, which shows at this picture's hard edge.
    for (name, bound) in [
        ("lossless.webp", 0),
        ("palette.png", 0),
        ("alpha.png", 0),
        ("gray-alpha.png", 0),
        ("color.jpg", 8),
        ("progressive.jpg", 8),
        ("gray.jpg", 2),
        ("cmyk.jpg", 4),
        ("turned.jpg", 8),
    ] {
        let difference = distance(&picture(name), &picture(&format!("{name}.rgb.png")));
        assert!(difference <= bound, "{name}: {difference}");
    }
}

/// Of 16 bits Pillow takes the upper eight; of gray pictures it would leave no more than 255.
#[test]
fn sixteen_bits_become_the_upper_eight() {
    let values = [0u16, 127, 128, 255, 256, 383, 384, 511, 32767, 32768, 65279, 65280, 65535];
    let upper = values.map(|value| (value >> 8) as u8);
    let decoded = |picture: image::DynamicImage| {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        let picture = decode_image("x.png", &bytes.into_inner()).unwrap();
        picture.pixels().chunks(3).map(|rgb| <[u8; 3]>::try_from(rgb).unwrap()).collect::<Vec<_>>()
    };
    let wide = values.len() as u32;
    let value = |x: u32| values[x as usize];
    let rgba =
        ImageBuffer::from_fn(wide, 1, |x, _| Rgba([value(x), value(wide - 1 - x), 7, 65535]));
    let reversed = upper.iter().rev();
    let expected: Vec<_> = upper.iter().zip(reversed).map(|(&r, &g)| [r, g, 0]).collect();
    assert_eq!(decoded(rgba.into()), expected);
    let gray = ImageBuffer::from_fn(wide, 1, |x, _| Luma([value(x)]));
    assert_eq!(decoded(gray.into()), upper.map(|value| [value; 3]));
}

/// A header of a few bytes that asks for gigabytes.
#[test]
fn pictures_beyond_memory_are_refused_before_it_is_taken() {
    let picture: image::DynamicImage = ImageBuffer::from_pixel(1, 1, Rgba([7u16; 4])).into();
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    let mut bytes = bytes.into_inner();
    // Signature, length, "IHDR", width, height, five bytes, checksum.
    for side in [32768u32, 20000] {
        bytes[16..20].copy_from_slice(&side.to_be_bytes());
        bytes[20..24].copy_from_slice(&side.to_be_bytes());
        let mut sum = flate2::Crc::new();
        sum.update(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&sum.sum().to_be_bytes());
        let error = decode_image("x.png", &bytes).unwrap_err().to_string();
        assert!(error.contains("emory"), "{error}");
    }
    // Four components have more coefficients than three: start of frame, length, eight bits, height, width.
    let mut bytes = fs::read(fixture("cmyk.jpg")).unwrap();
    let frame = bytes.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
    for size in [frame + 5, frame + 7] {
        bytes[size..size + 2].copy_from_slice(&10500u16.to_be_bytes());
    }
    let error = decode_image("x.jpg", &bytes).unwrap_err().to_string();
    assert!(error.contains("10500×10500 pixels take more"), "{error}");
}

/// Pillow refuses these, too; a lenient decoder would paint the rest gray.
#[test]
fn pictures_that_break_off_are_refused() {
    for name in ["color.jpg", "progressive.jpg", "gray.jpg", "cmyk.jpg", "turned.jpg"] {
        let whole = fs::read(fixture(name)).unwrap();
        assert!(decode_image(name, &whole).is_ok(), "{name}");
        for cut in 0..whole.len() {
            assert!(decode_image(name, &whole[..cut]).is_err(), "{name}: {cut} bytes");
        }
    }
    let message = |bytes: &[u8]| decode_image("x.jpg", bytes).unwrap_err().to_string();
    let whole = fs::read(fixture("color.jpg")).unwrap();
    assert!(message(&whole[..whole.len() - 2]).contains("truncated"));
    assert!(message(&[]).contains("empty"));
    assert!(message(b"GIF89a").contains("no JPEG, PNG or WebP"));
}

/// `train` with classes ant (two pictures, one of them damaged) and bee (one), `val` with bee.
fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("ottava-folder-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    for class in ["train/bee/more", "train/ant", "train/.cache", "val/bee"] {
        fs::create_dir_all(dir.join(class)).unwrap();
    }
    for (from, to) in [
        ("color.jpg", "train/ant/b.JPEG"),
        ("source.png", "train/bee/more/x.png"),
        ("gray.jpg", "val/bee/y.jpg"),
    ] {
        fs::copy(fixture(from), dir.join(to)).unwrap();
    }
    let whole = fs::read(fixture("progressive.jpg")).unwrap();
    fs::write(dir.join("train/ant/a.jpg"), &whole[..40]).unwrap();
    fs::write(dir.join("train/ant/notes.txt"), "no picture").unwrap();
    dir
}

#[test]
fn damaged_files_are_named_and_skipped_or_refused() {
    let dir = folder("damaged");
    let train = Arc::new(ImageFolder::new(&dir, Split::Train).unwrap());
    assert_eq!(train.classes(), ["ant", "bee"]);
    assert_eq!((train.len(), train.shape()), (3, None));
    let options = |on_bad_image| LoaderOptions {
        on_bad_image,
        augment: Augment::suited_to(&*train, &Preprocess::imagenet()).unwrap(),
        workers: 2,
        ..LoaderOptions::default()
    };
    let preprocess: Preprocess = "imagenet,crop=20".parse().unwrap();
    let loader = |on_bad| Loader::new(train.clone(), preprocess.clone(), options(on_bad)).unwrap();

    let mut epoch = loader(OnBadImage::Skip).epoch(0);
    let batch = epoch.next().unwrap().unwrap();
    assert_eq!(
        (batch.images.shape(), &*batch.labels),
        ([2, 3, 20, 20].as_slice(), [0, 1].as_slice())
    );
    assert!(epoch.next().is_none());
    let message = epoch.skipped()[&0].to_string();
    assert!(message.contains("a.jpg") && !message.contains('\n'), "{message}");

    let refused = loader(OnBadImage::Refuse).epoch(0).next().unwrap();
    assert!(matches!(refused, Err(Error::Format { .. })));

    let val = ImageFolder::new(&dir, Split::Test).unwrap();
    assert_eq!((val.len(), val.get(0).unwrap().label), (1, 1));
    fs::create_dir_all(dir.join("val/cow")).unwrap();
    let error = ImageFolder::new(&dir, Split::Test).unwrap_err().to_string();
    assert!(error.contains("cow is a class that training does not have"), "{error}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn no_picture_is_lost_without_a_word() {
    let dir = folder("lost");
    let listed = |split| ImageFolder::new(&dir, split);
    // A format that is not read is a bad image, not none.
    fs::write(dir.join("train/bee/z.bmp"), b"BM").unwrap();
    let train = listed(Split::Train).unwrap();
    assert_eq!(train.len(), 4);
    let error = train.get(3).unwrap_err().to_string();
    assert!(error.contains("z.bmp") && error.contains("no JPEG, PNG or WebP"), "{error}");
    // What tools leave behind is no picture.
    fs::create_dir_all(dir.join("train/bee/.ipynb_checkpoints")).unwrap();
    for hidden in ["train/bee/.ipynb_checkpoints/a.png", "train/ant/._b.jpg"] {
        fs::write(dir.join(hidden), b"x").unwrap();
    }
    assert_eq!(listed(Split::Train).unwrap().len(), 4);
    // A deep folder is reached, and a link to a folder above brings nothing of other classes.
    let deep = dir.join("train/ant").join("d/".repeat(40));
    fs::create_dir_all(&deep).unwrap();
    fs::copy(fixture("gray.jpg"), deep.join("x.jpg")).unwrap();
    assert_eq!(listed(Split::Train).unwrap().len(), 5);
    #[cfg(unix)]
    for (to, link) in
        [("train", "train/ant/up"), ("train/ant", "train/ant/d/self"), (".", "train/bee/top")]
    {
        std::os::unix::fs::symlink(dir.join(to), dir.join(link)).unwrap();
        assert_eq!(listed(Split::Train).unwrap().len(), 5, "{link}");
    }
    // A folder that links reach again counts once, by the first of its names, however the system lists them.
    #[cfg(unix)]
    {
        for group in ["p", "q", "r"].map(|group| dir.join("train/bee").join(group)) {
            fs::create_dir_all(group.join("z")).unwrap();
            fs::copy(fixture("gray.jpg"), group.join("z/x.jpg")).unwrap();
            for link in ["h", "b", "g", "a", "f", "c", "e", "d"] {
                std::os::unix::fs::symlink("z", group.join(link)).unwrap();
            }
        }
        let train = listed(Split::Train).unwrap();
        let shown: Vec<_> = (0..train.len()).map(|i| train.path(i).unwrap()).collect();
        assert_eq!(shown.iter().filter(|path| path.ends_with("a/x.jpg")).count(), 3, "{shown:?}");
        assert!(shown.len() == 8 && shown.is_sorted(), "{shown:?}");
    }
    // A class without pictures is a mistake.
    fs::create_dir_all(dir.join("train/cow")).unwrap();
    let error = listed(Split::Train).unwrap_err().to_string();
    assert!(error.contains("cow is a class without pictures"), "{error}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_folder_that_is_none_says_what_belongs_there() {
    let error = ImageFolder::new(Path::new("/nowhere"), Split::Train).unwrap_err().to_string();
    assert!(error.contains("train/CLASS"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damage_is_never_a_panic(
        which in 0usize..6,
        cut in prop::option::of(0usize..3000),
        hits in prop::collection::vec((0usize..3000, any::<u8>()), 0..6),
    ) {
        let names = ["color.jpg", "progressive.jpg", "cmyk.jpg", "turned.jpg", "lossless.webp", "palette.png"];
        let mut bytes = fs::read(fixture(names[which])).unwrap();
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        for (at, value) in hits {
            let len = bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at % len) {
                *byte = value;
            }
        }
        let _ = decode_image("t", &bytes);
    }
}
