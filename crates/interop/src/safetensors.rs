use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use ottava_quant::write_atomic;
use ottava_tensor::Tensor;
use safetensors::tensor::{Metadata, SafeTensors, View};

use crate::dtype::Dtype;
use crate::{Error, Result, StateDict};

/// The number format that a file is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Exactly.
    #[default]
    F32,
    /// Half the bytes, eleven significant bits, largest number 65504.
    F16,
    /// Half the bytes, eight significant bits, largest number 3.39e38 (`f32` ends at 3.40e38).
    BF16,
}

impl Precision {
    /// The number that is written for `x`.
    fn rounded(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::BF16 => bf16::from_f32(x).to_f32(),
        }
    }
}

/// Reads a safetensors file: `f64 f32 f16 bf16 i64 i32 i16 i8 u8 bool`, all as `f32`.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] for a damaged file, [`Error::Unsupported`] for a number format
/// that is not in the list.
///
/// # Source
/// The format's description in Hugging Face's `safetensors`, whose own parser checks the header.
pub fn read_safetensors(path: &Path) -> Result<StateDict> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, &error))?;
    safetensors_from_bytes(&path.display().to_string(), &bytes)
}

/// The same from memory; `name` stands for the path in errors.
///
/// # Errors
/// As [`read_safetensors`].
pub fn safetensors_from_bytes(name: &str, bytes: &[u8]) -> Result<StateDict> {
    let damaged = |error: safetensors::SafeTensorError| {
        Error::format(name, format!("damaged safetensors file: {error}"))
    };
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let data = &bytes[8 + header..];
    let mut dict = StateDict::new();
    for tensor in metadata.offset_keys() {
        dict.insert(tensor.clone(), read_tensor(name, &tensor, &metadata, data)?);
    }
    dict.metadata.extend(metadata.metadata().clone().unwrap_or_default());
    Ok(dict)
}

fn read_tensor(file: &str, name: &str, metadata: &Metadata, data: &[u8]) -> Result<Tensor<f32>> {
    let broken = || Error::format(file, format!("the place of tensor {name:?} is damaged"));
    let info = metadata.info(name).ok_or_else(broken)?;
    let dtype = dtype(info.dtype).ok_or_else(|| {
        Error::unsupported(file, format!("tensor {name:?} has number format {:?}", info.dtype))
    })?;
    let bytes = data.get(info.data_offsets.0..info.data_offsets.1).ok_or_else(broken)?;
    Tensor::new(&info.shape, dtype.numbers(bytes))
        .map_err(|error| Error::format(file, format!("tensor {name:?}: {error}")))
}

fn dtype(theirs: safetensors::Dtype) -> Option<Dtype> {
    Some(match theirs {
        safetensors::Dtype::F64 => Dtype::F64,
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::F16 => Dtype::F16,
        safetensors::Dtype::BF16 => Dtype::BF16,
        safetensors::Dtype::I64 => Dtype::I64,
        safetensors::Dtype::I32 => Dtype::I32,
        safetensors::Dtype::I16 => Dtype::I16,
        safetensors::Dtype::I8 => Dtype::I8,
        safetensors::Dtype::U8 => Dtype::U8,
        safetensors::Dtype::BOOL => Dtype::Bool,
        // Their list grows with hardware; none of the others holds weights we could use.
        _ => return None,
    })
}

/// Writes a safetensors file, all of it or nothing (see [`write_atomic`]).
///
/// ```
/// use ottava_interop::{Precision, StateDict, read_safetensors, write_safetensors};
/// use ottava_tensor::Tensor;
///
/// # let path = std::env::temp_dir().join(format!("ottava-doc-{}.safetensors", std::process::id()));
/// let mut dict = StateDict::new();
/// dict.insert("fc.bias", Tensor::new(&[2], [0.5, -1.0])?);
/// dict.metadata.insert("preprocess.pixels".into(), "unit".into());
/// write_safetensors(&path, &dict, Precision::F16)?;
///
/// let read = read_safetensors(&path)?;
/// assert_eq!(read.get("fc.bias"), dict.get("fc.bias"));
/// assert_eq!(read.metadata, dict.metadata);
/// # std::fs::remove_file(path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::Write`]; [`Error::Format`] if the names and the metadata take more than the 100 MB a
/// header may have; [`Error::Unsupported`] for a number that the precision would make infinite.
pub fn write_safetensors(path: &Path, dict: &StateDict, precision: Precision) -> Result<()> {
    let shown = path.display().to_string();
    let beyond = |x: &f32| x.is_finite() && precision.rounded(*x).is_infinite();
    let found = dict.iter().find_map(|(name, tensor)| Some((name, tensor.iter().find(beyond)?)));
    if let Some((name, x)) = found {
        return Err(Error::unsupported(
            &shown,
            format!("{x} in {name} is beyond the largest number of {precision:?}; write f32"),
        ));
    }
    let tensors = dict.iter().map(|(name, tensor)| (name, Written { tensor, precision }));
    let metadata = (!dict.metadata.is_empty())
        .then(|| dict.metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect());
    let mut bytes = safetensors::serialize(tensors, metadata)
        .map_err(|error| Error::format(&shown, error.to_string()))?;
    in_order(&mut bytes, &dict.metadata);
    Ok(write_atomic(path, &bytes)?)
}

/// Brings the metadata of a file, which the library writes in any order, into the order of their names: the same
/// weights are the same bytes.
fn in_order(bytes: &mut [u8], metadata: &BTreeMap<String, String>) {
    const FIRST: &[u8] = b"{\"__metadata__\":";
    let Ok(sorted) = serde_json::to_string(metadata) else { return };
    // Behind the header's length, eight bytes. In another order it has the same length.
    let start = 8 + FIRST.len();
    if bytes.get(8..start) == Some(FIRST)
        && let Some(place) = bytes.get_mut(start..start + sorted.len())
    {
        place.copy_from_slice(sorted.as_bytes());
    }
}

/// A tensor as the writer wants to see it.
struct Written<'a> {
    tensor: &'a Tensor<f32>,
    precision: Precision,
}

impl View for Written<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        match self.precision {
            Precision::F32 => safetensors::Dtype::F32,
            Precision::F16 => safetensors::Dtype::F16,
            Precision::BF16 => safetensors::Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let numbers = self.tensor.iter();
        Cow::Owned(match self.precision {
            Precision::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
            Precision::F16 => numbers.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            Precision::BF16 => numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
        })
    }

    fn data_len(&self) -> usize {
        let size = match self.precision {
            Precision::F32 => 4,
            Precision::F16 | Precision::BF16 => 2,
        };
        self.tensor.len() * size
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn tensors_come_in_the_order_of_the_file() {
        let header = r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
            "a":{"dtype":"I64","shape":[],"data_offsets":[4,12]},"__metadata__":{"x":"y"}}"#;
        let data = [1.5f32.to_le_bytes().as_slice(), &7i64.to_le_bytes()].concat();
        let dict = safetensors_from_bytes("t", &file(header, &data)).unwrap();
        assert_eq!(dict.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(dict.get("a").unwrap().item().unwrap(), 7.0);
        assert_eq!(dict.metadata["x"], "y");
    }

    #[test]
    fn a_strided_tensor_is_written_in_logical_order() {
        let x = Tensor::new(&[1, 2, 2, 2], [0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).unwrap();
        let x = x.channels_last();
        let written = Written { tensor: &x, precision: Precision::F32 };
        assert_eq!(Dtype::F32.numbers(&written.data()), x.to_vec());
        assert_eq!(written.data().len(), written.data_len());
    }

    #[test]
    fn the_same_weights_are_the_same_bytes() {
        let dir = std::env::temp_dir().join(format!("ottava-order-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut dict = StateDict::new();
        dict.insert("w", Tensor::new(&[2], [0.5, 7e4]).unwrap());
        dict.metadata.extend((0..20).map(|i| (format!("key \"{i}\""), format!("value\n{i}"))));
        let write = |file: &str, precision| write_safetensors(&dir.join(file), &dict, precision);
        write("a", Precision::F32).unwrap();
        write("b", Precision::F32).unwrap();
        assert_eq!(fs::read(dir.join("a")).unwrap(), fs::read(dir.join("b")).unwrap());
        assert_eq!(read_safetensors(&dir.join("a")).unwrap().metadata, dict.metadata);
        let error = write("c", Precision::F16).unwrap_err().to_string();
        assert!(error.contains("70000 in w") && !dir.join("c").exists(), "{error}");
        write("c", Precision::BF16).unwrap();
        let mut dict = dict.clone();
        dict.insert("large", Tensor::new(&[1], [f32::MAX]).unwrap());
        let write = |file: &str, precision| write_safetensors(&dir.join(file), &dict, precision);
        let error = write("d", Precision::BF16).unwrap_err().to_string();
        assert!(error.contains("in large") && !dir.join("d").exists(), "{error}");
        write("d", Precision::F32).unwrap();
        fs::remove_dir_all(dir).unwrap();
    }

    /// 19280 is "PK", as a zip archive begins.
    #[test]
    fn a_header_of_any_length_is_one() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let bytes = file(&format!("{header:<19280}"), &1.5f32.to_le_bytes());
        assert!(bytes.starts_with(b"PK"));
        let path = std::env::temp_dir().join(format!("ottava-header-{}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        let dict = crate::read_state_dict(&path);
        fs::remove_file(path).unwrap();
        assert_eq!(dict.unwrap().get("a").unwrap().to_vec(), [1.5]);
    }

    #[test]
    fn overlaps_gaps_and_overflowing_shapes_are_refused() {
        for header in [
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}"#,
            r#"{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#,
            "{",
        ] {
            assert!(safetensors_from_bytes("t", &file(header, &[0; 4])).is_err(), "{header}");
        }
        assert!(safetensors_from_bytes("t", &[255; 8]).is_err());
    }

    proptest! {
        #[test]
        fn damage_is_never_a_panic(
            cut in 0usize..100,
            hits in prop::collection::vec((0usize..100, any::<u8>()), 0..4),
        ) {
            let header = r#"{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;
            let mut bytes = file(header, &[0; 8]);
            bytes.truncate(bytes.len().saturating_sub(cut));
            for (at, value) in hits {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            let _ = safetensors_from_bytes("t", &bytes);
        }
    }
}
