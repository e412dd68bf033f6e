//! Data sets on disk, whole and damaged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ottava_data::{Cifar, DataSpec, Dataset, Split, read_cifar, read_mnist};
use proptest::prelude::*;

/// A directory of this test's own, removed when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("ottava-data-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn spec(&self, kind: &str) -> DataSpec {
        format!("{kind}:{}", self.0.display()).parse().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl AsRef<Path> for Scratch {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

fn write_mnist(dir: &Path, prefix: &str, labels: &[u8]) {
    let pixels: Vec<u8> = (0..labels.len() * 6).map(|i| i as u8).collect();
    write_idx(&dir.join(format!("{prefix}images-idx3-ubyte")), &[labels.len(), 2, 3], &pixels)
        .unwrap();
    write_idx(&dir.join(format!("{prefix}labels-idx1-ubyte")), &[labels.len()], labels).unwrap();
}

#[test]
fn an_idx_folder_has_two_splits_that_agree_on_the_classes() {
    let dir = Scratch::new("idx");
    write_mnist(&dir.0, "train-", &[0, 1, 4]);
    write_mnist(&dir.0, "t10k-", &[1, 0]);
    let (train, test) = (dir.spec("idx").load(Split::Train), dir.spec("idx").load(Split::Test));
    let (train, test) = (train.unwrap(), test.unwrap());
    assert_eq!((train.len(), test.len(), train.shape()), (3, 2, Some([1, 2, 3])));
    assert_eq!((train.classes().len(), test.classes().len()), (5, 5));
    assert_eq!(train.get(2).unwrap().image.pixels(), [12, 13, 14, 15, 16, 17]);
}

#[test]
fn an_idx_folder_without_splits_is_split() {
    let dir = Scratch::new("digits");
    write_mnist(&dir.0, "", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
    let train = dir.spec("idx").load(Split::Train).unwrap();
    let test = dir.spec("idx").load(Split::Test).unwrap();
    assert_eq!((train.len(), test.len(), test.classes().len()), (8, 3, 10));
    assert_eq!((test.get(0).unwrap().label, test.get(0).unwrap().image.pixels()[0]), (8, 48));
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let dir = Scratch::new("mismatch");
    write_mnist(&dir.0, "train-", &[0, 1, 2]);
    write_idx(&dir.0.join("train-labels-idx1-ubyte"), &[2], &[0, 1]).unwrap();
    let message = |split| read_mnist(&dir.0, split).err().unwrap().to_string();
    assert!(message(Split::Train).contains("3 images, but 2 labels"));
    assert!(message(Split::Test).contains("t10k-images-idx3-ubyte"));
    fs::write(dir.0.join("labels.txt"), "shirt\n\n").unwrap();
    write_idx(&dir.0.join("train-labels-idx1-ubyte"), &[3], &[0, 0, 1]).unwrap();
    assert!(message(Split::Train).contains("image 2 has label 1, but there are 1 classes"));
    // A class without a name does not shift those behind it.
    fs::write(dir.0.join("labels.txt"), "shirt\n\nboot\n").unwrap();
    let named = read_mnist(&dir.0, Split::Train).unwrap();
    assert_eq!(named.classes(), ["shirt", "1", "boot"]);
}

/// An IDX file of bytes.
fn write_idx(path: &Path, dims: &[usize], data: &[u8]) -> io::Result<()> {
    assert_eq!(dims.iter().product::<usize>(), data.len());
    let sizes = dims.iter().flat_map(|&dim| (dim as u32).to_be_bytes());
    fs::write(
        path,
        Vec::from_iter(
            [0, 0, 8, dims.len() as u8].into_iter().chain(sizes).chain(data.iter().copied()),
        ),
    )
}

fn cifar_records(labels: &[&[u8]]) -> Vec<u8> {
    let planes = (0..3072usize).map(|i| (i / 1024 * 50 + i % 50) as u8);
    labels.iter().flat_map(|label| label.iter().copied().chain(planes.clone())).collect()
}

#[test]
fn cifar_is_found_in_its_folder_and_around_it() {
    let dir = Scratch::new("cifar10");
    let inner = dir.0.join("cifar-10-batches-bin");
    fs::create_dir_all(&inner).unwrap();
    for i in 1..=5u8 {
        fs::write(inner.join(format!("data_batch_{i}.bin")), cifar_records(&[&[i], &[0]])).unwrap();
    }
    fs::write(inner.join("test_batch.bin"), cifar_records(&[&[9]])).unwrap();
    for dir in [&dir.0, &inner] {
        let train = read_cifar(dir, Cifar::Ten, Split::Train).unwrap();
        assert_eq!(train.labels(), [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]);
        let image = train.get(3).unwrap().image;
        assert_eq!(
            (image.shape(), &image.pixels()[..6]),
            ([3, 32, 32], [0, 74, 148, 1, 75, 149].as_slice())
        );
        assert_eq!(read_cifar(dir, Cifar::Ten, Split::Test).unwrap().labels(), [9]);
    }
    // Names that are not of ten classes are not these; a file that cannot be read is not none.
    let classes = || read_cifar(&dir.0, Cifar::Ten, Split::Test).map(|set| set.classes().to_vec());
    let names = inner.join("batches.meta.txt");
    let ten = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
    fs::write(&names, ten.join("\n") + "\n\n").unwrap();
    assert_eq!(classes().unwrap(), ten);
    fs::write(&names, "plane\n").unwrap();
    assert_eq!(classes().unwrap()[0], "0");
    fs::write(&names, b"plane\xff\n").unwrap();
    assert!(classes().unwrap_err().to_string().contains("batches.meta.txt"));
}

#[test]
fn cifar_errors_name_the_file_and_the_byte() {
    let dir = Scratch::new("cifar100");
    let spec = dir.spec("cifar100");
    let message = |bytes: &[u8]| {
        fs::write(dir.0.join("test.bin"), bytes).unwrap();
        spec.load(Split::Test).err().unwrap().to_string()
    };
    let good = cifar_records(&[&[3, 77], &[0, 99]]);
    assert!(message(&good[..5000]).contains("test.bin, byte 3074: the file's 5000 bytes"));
    assert!(message(&[]).contains("0 bytes"));
    assert!(message(&cifar_records(&[&[0, 1], &[0, 100]])).contains("byte 3075: label 100"));
    assert!(spec.load(Split::Train).err().unwrap().to_string().contains("train.bin"));
    fs::write(dir.0.join("test.bin"), &good).unwrap();
    assert_eq!(spec.load(Split::Test).unwrap().get(1).unwrap().label, 99);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_folders_never_panic(
        cut in 0usize..40,
        hits in prop::collection::vec((0usize..40, any::<u8>()), 0..4),
        images in any::<bool>(),
    ) {
        let dir = Scratch::new("damage");
        write_mnist(&dir.0, "train-", &[0, 1, 2]);
        let what = if images { "train-images-idx3-ubyte" } else { "train-labels-idx1-ubyte" };
        let mut bytes = fs::read(dir.0.join(what)).unwrap();
        bytes.truncate(bytes.len().saturating_sub(cut));
        for (at, value) in hits {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        fs::write(dir.0.join(what), bytes).unwrap();
        if let Ok(set) = read_mnist(&dir.0, Split::Train) {
            prop_assert!((0..set.len()).all(|i| set.get(i).is_ok()));
        }
    }
}
