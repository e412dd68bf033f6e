//! Where the pickle and the numbers lie in a file.

use std::collections::HashMap;
use std::io::{Cursor, Read};

use zip::ZipArchive;
use zip::read::ZipReadOptions;

use super::Refusal;
use super::pickle::load;
use super::value::{Heap, Value};

/// How a file written before PyTorch 1.6 begins: a pickle of its magic number.
const LEGACY: [u8; 15] =
    [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
/// The version number that follows it.
const LEGACY_VERSION: i64 = 1001;
/// A pickle of names and shapes is small; the numbers lie outside.
const MAX_PICKLE: u64 = 64 << 20;

/// What a file holds: the object that was saved, and the bytes of its storages by key.
pub(super) struct Checkpoint {
    pub(super) heap: Heap,
    pub(super) root: Value,
    pub(super) storages: HashMap<String, Vec<u8>>,
}

/// Opens either of the two formats.
pub(super) fn open(bytes: &[u8]) -> Result<Checkpoint, Refusal> {
    if let Some(rest) = bytes.strip_prefix(&LEGACY) {
        return legacy(rest);
    }
    // A pickle begins so, whatever its protocol, and no archive.
    if bytes.first() == Some(&0x80) {
        return Refusal::unsupported(
            "a pickle of another protocol than 2, or of something else than PyTorch's; save it again with \
             torch.save of PyTorch 1.6 or later",
        );
    }
    zipped(bytes)
}

fn zipped(bytes: &[u8]) -> Result<Checkpoint, Refusal> {
    let broken = |error: zip::result::ZipError| Refusal::Damaged(format!("zip archive: {error}"));
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    let names = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned()));
    let pickle = names.into_iter().find(|name| name == "data.pkl" || name.ends_with("/data.pkl"));
    let Some(pickle) = pickle else {
        return Refusal::unsupported("a zip archive without data.pkl is no PyTorch file");
    };
    let folder = pickle.strip_suffix("data.pkl").unwrap_or_default().to_string();
    // What all entries together may take: as much as the file has. Entries are not compressed, so
    // that a file whose entries take more lets them overlap.
    let mut budget = bytes.len() as u64;
    let order = format!("{folder}byteorder");
    let tells_order = archive.index_for_name(&order).is_some();
    let mut read = |name: &str, limit: u64| -> Result<Vec<u8>, Refusal> {
        let Some(index) = archive.index_for_name(name) else {
            return Refusal::damaged(format!("{name} is missing"));
        };
        // PyTorch writes zero where it was told to compute no sums.
        let unchecked = archive.by_index_data(index).map_err(broken)?.crc32() == 0;
        let options = ZipReadOptions::new().ignore_crc32(unchecked);
        let entry = archive.by_index_with_options(index, options).map_err(broken)?;
        let size = entry.size();
        if size > budget.min(limit) {
            return Refusal::damaged(format!("{name} claims {size} bytes; {budget} are left"));
        }
        budget -= size;
        let mut data = Vec::new();
        // The sum is compared where the entry ends: one byte more asks for that.
        match entry.take(size + 1).read_to_end(&mut data) {
            Ok(read) if read as u64 == size => Ok(data),
            Ok(read) => Refusal::damaged(format!("{name} has {read} bytes, not {size}")),
            Err(error) => Refusal::damaged(format!("{name}: {error}")),
        }
    };
    if tells_order && read(&order, 16)? != b"little" {
        return Refusal::unsupported(
            "saved on a big-endian machine; save it on a little-endian one",
        );
    }
    let program = read(&pickle, MAX_PICKLE)?;
    let mut heap = Heap::default();
    let root = load(&program, &mut 0, &mut heap)?;
    let mut storages = HashMap::new();
    for storage in &heap.storages {
        if !storages.contains_key(&*storage.key) {
            let data = read(&format!("{folder}data/{}", storage.key), u64::MAX)?;
            storages.insert(storage.key.to_string(), data);
        }
    }
    Ok(Checkpoint { heap, root, storages })
}

/// Four pickles (version, machine, object, keys of the storages), then each storage: how many
/// numbers (`i64`), and the numbers.
fn legacy(bytes: &[u8]) -> Result<Checkpoint, Refusal> {
    let (mut heap, mut at) = (Heap::default(), 0);
    let version = load(bytes, &mut at, &mut heap)?;
    if !matches!(version, Value::Int(LEGACY_VERSION)) {
        return Refusal::unsupported("a PyTorch file of an unknown version before 1.6");
    }
    load(bytes, &mut at, &mut heap)?;
    let root = load(bytes, &mut at, &mut heap)?;
    let keys = load(bytes, &mut at, &mut heap)?;
    let sizes: HashMap<&str, usize> =
        heap.storages.iter().map(|storage| (&*storage.key, storage.dtype.size())).collect();
    let mut storages = HashMap::new();
    for key in heap.items(&keys).unwrap_or_default() {
        let Some((key, size)) = heap.text(key).and_then(|key| Some((key, *sizes.get(key)?))) else {
            return Refusal::damaged("the list of storages names one that no tensor uses");
        };
        let rest = bytes.get(at..).unwrap_or_default();
        let data = rest.split_first_chunk().and_then(|(count, rest)| {
            let count = usize::try_from(i64::from_le_bytes(*count)).ok()?;
            rest.get(..count.checked_mul(size)?)
        });
        let Some(data) = data else {
            let offset = LEGACY.len() + at;
            return Refusal::damaged(format!("the file ends within storage {key} (byte {offset})"));
        };
        at += 8 + data.len();
        storages.insert(key.to_string(), data.to_vec());
    }
    Ok(Checkpoint { heap, root, storages })
}
