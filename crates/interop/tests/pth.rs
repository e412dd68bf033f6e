//! State dicts that PyTorch wrote (`tools/make_pth_fixtures.py`), and damaged ones.
#![cfg(feature = "pth")]

use std::path::{Path, PathBuf};

use ottava_interop::{Error, pth_from_bytes, read_pth, read_state_dict};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn every_number_format_and_every_view_is_read() {
    let dict = read_pth(&fixture("everything.pth")).unwrap();
    let values = |name: &str| dict.get(name).unwrap().to_vec();
    for name in ["f64", "f32", "f16", "bf16"] {
        assert_eq!(values(name), [-0.75, -0.5, -0.25, 0.0, 0.25, 0.5], "{name}");
    }
    for name in ["i64", "i32", "i16", "i8"] {
        assert_eq!(values(name), [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0], "{name}");
    }
    assert_eq!(values("u8"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(values("bool"), [1.0, 0.0]);
    assert_eq!(dict.get("scalar").unwrap().item().unwrap(), 7.5);
    assert_eq!(dict.get("empty").unwrap().shape(), [0, 3]);
    // base[i][j][k] = 6i + 2j + k − 12, permuted to [k][i][j].
    let permuted: Vec<f32> = (0..2)
        .flat_map(|k| {
            (0..4).flat_map(move |i| (0..3).map(move |j| (6 * i + 2 * j + k - 12) as f32))
        })
        .collect();
    assert_eq!(values("permuted"), permuted);
    assert_eq!(values("sliced"), [-5.0, -3.0, -1.0, 7.0, 9.0, 11.0]);
    assert_eq!(values("channels_last"), (-12..12).map(|x| x as f32).collect::<Vec<_>>());
    assert_eq!(values("expanded"), [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
    assert_eq!(dict.iter().next().unwrap().0, "f64");
}

#[test]
fn checkpoints_of_all_formats_hold_the_same_model() {
    let first = [-0.001_440_839_3, 0.103_238_62, -0.158_395_11];
    for name in ["checkpoint.pth", "legacy.pth", "protocol4.pth"] {
        let dict = read_state_dict(&fixture(name)).unwrap();
        let of = |key: &str| {
            let found = dict.iter().find(|(name, _)| name.ends_with(key));
            found.unwrap_or_else(|| panic!("{name}: no {key}")).1.clone()
        };
        assert_eq!(of("0.weight").to_vec()[..3], first, "{name}");
        assert_eq!(of("0.weight").shape(), [2, 3, 3, 3], "{name}");
        assert_eq!(of("1.running_var").to_vec(), [1.0, 1.0], "{name}");
    }
}

#[test]
fn what_would_run_code_is_refused_by_name() {
    let refusal = |name: &str| match read_pth(&fixture(name)) {
        Err(Error::Unsupported { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refusal("hostile.pth").contains("\"posix.system\""));
    assert!(refusal("module.pth").contains("\"torch.nn.modules.container.Sequential\""));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn damage_is_never_a_panic(
        which in 0usize..3,
        cut in prop::option::of(0usize..6000),
        hits in prop::collection::vec((0usize..6000, any::<u8>()), 0..6),
    ) {
        let name = ["everything.pth", "legacy.pth", "protocol4.pth"][which];
        let mut bytes = std::fs::read(fixture(name)).unwrap();
        // The sums of an archive would keep damage from what it holds.
        without_sums(&mut bytes);
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        for (at, value) in hits {
            let len = bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at % len) {
                *byte = value;
            }
        }
        let _ = pth_from_bytes("t", &bytes);
    }
}

/// The smallest zip archive of stored entries; the writer of `zip` is not part of our build.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let offset = (file.len() as u32).to_le_bytes();
        let sizes = [(data.len() as u32).to_le_bytes(); 2].concat();
        let head = [&[0; 8][..], &crc32(data).to_le_bytes(), &sizes, &[name.len() as u8, 0, 0, 0]]
            .concat();
        file.extend([b"PK\x03\x04\x14\0", &head[..], name.as_bytes(), data].concat());
        directory.extend(b"PK\x01\x02\x14\0\x14\0");
        directory.extend([&head[..], &[0; 10], &offset, name.as_bytes()].concat());
    }
    let (count, size, start) = (entries.len() as u8, directory.len() as u32, file.len() as u32);
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count, 0, count, 0]);
    file.extend([size.to_le_bytes(), start.to_le_bytes()].concat());
    file.extend([0, 0]);
    file
}

/// The places of an archive's entries in its directory.
fn directory(bytes: &[u8]) -> Vec<usize> {
    let last = bytes.len().saturating_sub(46);
    (0..last).filter(|&i| bytes[i..].starts_with(b"PK\x01\x02")).collect()
}

/// The archive as `torch.serialization.set_crc32_options(False)` has it written, with sums of zero.
fn without_sums(bytes: &mut [u8]) {
    directory(bytes).into_iter().for_each(|at| bytes[at + 16..][..4].fill(0));
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ ((crc & 1) * 0xedb8_8320))
    })
}

/// The entry `name: tensor` of a dictionary in a pickle, over the storage `key`, with these operands for
/// shape and strides.
fn tensor(name: &str, key: &str, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let int = |x: &i32| [b"J".as_slice(), &x.to_le_bytes()].concat();
    let text =
        |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let tuple = |sizes: &[i32]| {
        [b"(".to_vec(), sizes.iter().flat_map(int).collect(), b"t".to_vec()].concat()
    };
    [
        &text(name),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".as_slice(),
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text(key),
        &text("cpu"),
        b"K\x04tQ",
        &int(&offset),
        &tuple(shape),
        &tuple(strides),
        b"\x89NtRs",
    ]
    .concat()
}

/// A file of one tensor `x` over a storage of four floats.
fn one_tensor(offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let pickle = [b"\x80\x02}", &tensor("x", "0", offset, shape, strides)[..], b"."].concat();
    let data: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    archive(&[("a/data.pkl", &pickle), ("a/data/0", &data)])
}

#[test]
fn a_view_may_not_leave_its_storage_nor_fill_the_memory() {
    let read = |offset, shape: &[i32], strides: &[i32]| {
        pth_from_bytes("t", &one_tensor(offset, shape, strides))
            .map(|dict| dict.get("x").unwrap().to_vec())
            .map_err(|error| error.to_string())
    };
    assert_eq!(read(1, &[3], &[1]), Ok(vec![2.0, 3.0, 4.0]));
    assert!(read(2, &[3], &[1]).unwrap_err().contains("leave a storage of 4 elements"));
    assert!(read(0, &[2, 2], &[i32::MAX, 1]).is_err());
    assert!(read(-1, &[1], &[1]).unwrap_err().contains("negative"));
    assert!(read(0, &[i32::MAX, i32::MAX], &[0, 0]).unwrap_err().contains("beyond the file"));
    assert!(read(0, &[i32::MAX, i32::MAX, i32::MAX], &[0, 0, 0]).is_err());
    assert!(read(0, &[1 << 30], &[0]).is_err());
    assert!(read(0, &[2], &[1, 1]).is_err());
    assert_eq!(read(9, &[0, 5], &[1, 1]), Ok(vec![]));
    assert_eq!(read(3, &[1, 1], &[i32::MAX, i32::MAX]), Ok(vec![4.0]));
}

#[test]
fn an_entry_may_not_claim_more_than_the_file() {
    let mut bytes = one_tensor(0, &[1], &[1]);
    let at = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    for size in [20, 24] {
        bytes[at + size..][..4].copy_from_slice(&u32::MAX.to_le_bytes()[..]);
        bytes[at + size + 3] = 0x7f;
    }
    assert!(pth_from_bytes("t", &bytes).is_err());
}

#[test]
fn entries_that_overlap_may_not_multiply_the_file() {
    let tensors = ["0", "1", "2"].map(|key| tensor(key, key, 0, &[1024], &[1]));
    let pickle = [b"\x80\x02}", &tensors.concat()[..], b"."].concat();
    let data = [0x40; 4096];
    let file = |second: &[u8]| {
        let storages = [("a/data/0", &data[..]), ("a/data/1", second), ("a/data/2", second)];
        archive(&[&[("a/data.pkl", &pickle[..])], &storages[..]].concat())
    };
    assert_eq!(pth_from_bytes("t", &file(&data)).unwrap().len(), 3);
    // The directory gives the other storages the place of the first.
    let mut bytes = file(&[]);
    let entries = directory(&bytes);
    let [_, first, others @ ..] = &entries[..] else { panic!("{entries:?}") };
    for other in others {
        // Checksum and sizes, and the offset.
        for field in [16..28, 42..46] {
            bytes.copy_within(first + field.start..first + field.end, other + field.start);
        }
    }
    let refusal = pth_from_bytes("t", &bytes).unwrap_err().to_string();
    assert!(refusal.contains("a/data/1 claims 4096 bytes"), "{refusal}");
}

#[test]
fn a_flipped_bit_is_noticed() {
    let mut bytes = one_tensor(0, &[4], &[1]);
    let at = bytes.windows(4).position(|w| w == 2f32.to_le_bytes()).unwrap();
    bytes[at + 2] ^= 0x80;
    let refusal = pth_from_bytes("t", &bytes).unwrap_err().to_string();
    assert!(refusal.contains("a/data/0: Invalid checksum"), "{refusal}");
    without_sums(&mut bytes);
    assert_eq!(pth_from_bytes("t", &bytes).unwrap().get("x").unwrap().to_vec()[1], 4.0);
}

#[test]
fn compressed_entries_are_refused_before_they_are_unpacked() {
    // `torch.save` never compresses; what does could unpack to any size.
    let mut bytes = one_tensor(0, &[1], &[1]);
    for (signature, method) in [(b"PK\x01\x02", 10), (b"PK\x03\x04", 8)] {
        let places: Vec<usize> =
            (0..bytes.len() - 4).filter(|&i| bytes[i..].starts_with(signature)).collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|at| bytes[at + method] = 8);
    }
    let refusal = pth_from_bytes("t", &bytes).unwrap_err().to_string();
    assert!(refusal.contains("compression method"), "{refusal}");
}
