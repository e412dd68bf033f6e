//! IDX, the file format of the MNIST family: big-endian, `00 00 08 rank`, one `u32` per dimension,
//! then bytes. Plain or gzip-compressed.
//!
//! Source: Y. LeCun, "The MNIST database", section "File formats".

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::{Error, Result};

/// The type code of unsigned bytes, the only one that images and labels use.
const UNSIGNED_BYTE: u8 = 0x08;
/// How a gzip file begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Deflate cannot shrink data more than this (258 bytes from 2 bits): a larger size in a header is
/// a lie.
const DEFLATE_LIMIT: u64 = 1032;

/// The dimensions and the bytes of an IDX file; decompressed first if it is gzip.
///
/// Memory is taken as the bytes arrive, never on the word of the header alone.
///
/// # Errors
/// [`Error::Io`], or [`Error::Format`] for a file that is not IDX, holds no bytes, is shorter or
/// longer than its header says, or has another rank than `rank`.
pub fn read_idx(path: &Path, rank: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let file = File::open(path).map_err(|error| Error::io(path, &error))?;
    let size = file.metadata().map_err(|error| Error::io(path, &error))?.len();
    let mut file = BufReader::new(file);
    let start = file.fill_buf().map_err(|error| Error::io(path, &error))?;
    if start.starts_with(&GZIP) {
        parse(path, MultiGzDecoder::new(file), size.saturating_mul(DEFLATE_LIMIT), rank)
    } else {
        parse(path, file, size, rank)
    }
}

/// The same for bytes that are already in memory; `name` stands for the path in errors.
///
/// # Errors
/// As [`read_idx`].
pub fn idx_from_bytes(name: &str, bytes: &[u8], rank: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let (path, size) = (Path::new(name), bytes.len() as u64);
    if bytes.starts_with(&GZIP) {
        parse(path, MultiGzDecoder::new(bytes), size.saturating_mul(DEFLATE_LIMIT), rank)
    } else {
        parse(path, bytes, size, rank)
    }
}

/// Reads from `source`, which holds at most `limit` bytes.
fn parse(
    path: &Path,
    mut source: impl Read,
    limit: u64,
    rank: usize,
) -> Result<(Vec<usize>, Vec<u8>)> {
    let refuse = |offset: usize, reason: String| Err(Error::format(path, offset as u64, reason));
    let mut header = vec![0; 4 + 4 * rank];
    if let Err(error) = source.read_exact(&mut header) {
        return refuse(
            0,
            format!("the file ends, or cannot be unpacked, within its header ({error})"),
        );
    }
    let [a, b, kind, found, ..] = header[..] else {
        return refuse(0, "the header is too short".into());
    };
    if (a, b) != (0, 0) || kind != UNSIGNED_BYTE {
        return refuse(
            0,
            format!(
                "magic number {a:02x}{b:02x}{kind:02x}{found:02x}, but an IDX file of bytes begins \
                 0000080{rank}; is this an IDX file?"
            ),
        );
    }
    if usize::from(found) != rank {
        return refuse(3, format!("{found} dimensions where {rank} were expected"));
    }
    let dims: Vec<usize> = header[4..]
        .chunks(4)
        .map(|bytes| bytes.iter().fold(0, |value, &byte| value << 8 | usize::from(byte)))
        .collect();
    let room = limit.saturating_sub(header.len() as u64);
    let len = dims.iter().try_fold(1u64, |len, &dim| len.checked_mul(dim as u64));
    let Some(len) = len.filter(|&len| len > 0 && len <= room) else {
        return refuse(4, format!("dimensions {dims:?} where at most {room} bytes follow"));
    };
    let mut data = Vec::new();
    let more = source.by_ref().take(len).read_to_end(&mut data);
    let (end, missing) = (header.len() + data.len(), len - data.len() as u64);
    if let Err(error) = more {
        return refuse(end, format!("cannot be unpacked ({error})"));
    }
    if missing > 0 {
        return refuse(end, format!("the file ends {missing} bytes before dimensions {dims:?} do"));
    }
    // Also makes the decoder check the sum at the end of a gzip file.
    match source.read(&mut [0]) {
        Ok(0) => Ok((dims, data)),
        Ok(_) => refuse(end, format!("more bytes follow than dimensions {dims:?} hold")),
        Err(error) => refuse(end, format!("the checksum does not fit ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn file() -> Vec<u8> {
        let header = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3];
        header.into_iter().chain(1..=12).collect()
    }

    fn zipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn plain_and_gzip_hold_the_same() {
        let expected = (vec![2, 2, 3], Vec::from_iter(1..=12));
        assert_eq!(idx_from_bytes("x", &file(), 3).unwrap(), expected);
        assert_eq!(idx_from_bytes("x", &zipped(&file()), 3).unwrap(), expected);
    }

    #[test]
    fn errors_say_where() {
        let message = |bytes: &[u8]| idx_from_bytes("t", bytes, 3).unwrap_err().to_string();
        assert_eq!(
            message(&file()[..20]),
            "t, byte 4: dimensions [2, 2, 3] where at most 4 bytes follow"
        );
        let mut wrong = file();
        wrong[2] = 0x0d;
        assert!(message(&wrong).starts_with("t, byte 0: magic number 00000d03"));
        assert!(message(&[file(), vec![9]].concat()).contains("byte 28: more bytes follow"));
        assert!(idx_from_bytes("t", &file(), 1).unwrap_err().to_string().contains("3 dimensions"));
        assert!(message(&[]).contains("ends"));
    }

    #[test]
    fn a_header_that_promises_the_moon_takes_no_memory() {
        let bomb = [0, 0, 8, 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255];
        assert!(idx_from_bytes("t", &bomb, 3).is_err());
        assert!(idx_from_bytes("t", &zipped(&bomb), 3).is_err());
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_another_image_but_never_a_panic(
            gzip in any::<bool>(),
            cut in 0usize..60,
            hit in prop::collection::vec((0usize..60, any::<u8>()), 0..4),
        ) {
            let mut bytes = if gzip { zipped(&file()) } else { file() };
            bytes.truncate(bytes.len().saturating_sub(cut));
            for (at, value) in hit {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            if let Ok((dims, data)) = idx_from_bytes("t", &bytes, 3) {
                prop_assert_eq!(dims.iter().product::<usize>(), data.len());
            }
        }
    }
}
