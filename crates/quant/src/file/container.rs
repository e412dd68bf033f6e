use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytemuck::AnyBitPattern;
use ottava_tensor::{Element, SharedBytes, Tensor};

use super::json::{Reader, quote};
use super::write_atomic;
use crate::{Error, Result};

/// Bytes are read and written as they lie in memory; the format is little-endian.
const _: () = assert!(cfg!(target_endian = "little"));

/// The value of the metadata's `format`, and of its `version`.
const FORMAT: &str = "ottava";
const VERSION: &str = "1";

/// A header beyond this is no network's.
const MAX_HEADER: usize = 1 << 26;

/// Axes a tensor in a file may have.
const MAX_RANK: usize = 8;

/// The first tensor's bytes begin at a multiple of this in the file.
const ALIGN: usize = 64;

/// Named tensors and named texts in one file: programs, float weights, checkpoints.
///
/// The layout is that of safetensors, so that other tools open it: the length of a JSON header
/// (`u64`, little-endian), the header, the bytes. Tensors of wide elements come first, so each is
/// aligned to its element; the first begins at a multiple of 64 bytes. Reading borrows from the
/// shared bytes, which may be a memory map.
///
/// ```
/// use ottava_quant::Container;
/// use ottava_tensor::Tensor;
///
/// let mut container = Container::default();
/// container.put("weight", &Tensor::new(&[2], [0.5f32, 1.5])?)?;
/// container.metadata_mut().insert("model".into(), "tiny".into());
/// let read = Container::read(container.to_bytes())?;
/// assert_eq!(read.get::<f32>("weight")?.to_vec(), [0.5, 1.5]);
/// assert_eq!(read.metadata()["model"], "tiny");
/// # Ok::<(), ottava_quant::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Entry>,
}

/// A tensor in a [`Container`]: its form, and a share of the bytes.
#[derive(Clone)]
pub struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    owner: SharedBytes,
    range: Range<usize>,
}

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $size:literal;)*) => {
        /// The element types of files.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Dtype {
            $($(#[$doc])* $variant,)*
        }

        impl Dtype {
            /// The name in the header.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Bytes of an element.
            pub fn size(self) -> usize {
                match self {
                    $(Self::$variant => $size,)*
                }
            }

            fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

dtypes! {
    /// A byte, 0 or 1.
    Bool = "BOOL", 1;
    /// Unsigned, 8 bits.
    U8 = "U8", 1;
    /// Signed, 8 bits.
    I8 = "I8", 1;
    /// Unsigned, 16 bits.
    U16 = "U16", 2;
    /// Signed, 16 bits.
    I16 = "I16", 2;
    /// IEEE half.
    F16 = "F16", 2;
    /// The upper half of an `f32`.
    Bf16 = "BF16", 2;
    /// Unsigned, 32 bits.
    U32 = "U32", 4;
    /// Signed, 32 bits.
    I32 = "I32", 4;
    /// IEEE single.
    F32 = "F32", 4;
    /// Unsigned, 64 bits.
    U64 = "U64", 8;
    /// Signed, 64 bits.
    I64 = "I64", 8;
    /// IEEE double.
    F64 = "F64", 8;
}

mod sealed {
    pub trait Sealed {}
}

/// The element types that [`Container::put`] and [`Container::get`] know. Sealed.
pub trait Stored: Element + AnyBitPattern + sealed::Sealed {
    /// Its name in files.
    const DTYPE: Dtype;
}

macro_rules! stored {
    ($($type:ty => $variant:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Stored for $type {
            const DTYPE: Dtype = Dtype::$variant;
        }
    )*};
}

stored!(f32 => F32, i32 => I32, i64 => I64, i8 => I8, u8 => U8);

impl Entry {
    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The size of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, row-major, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.dtype, &self.shape, self.bytes()) == (other.dtype, &other.shape, other.bytes())
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype.name(), self.shape)
    }
}

impl Container {
    /// What is said besides tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// [`metadata`](Self::metadata), for writing. `format` and `version` are the container's own.
    pub fn metadata_mut(&mut self) -> &mut BTreeMap<String, String> {
        &mut self.metadata
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, Entry> {
        &self.tensors
    }

    /// Stores a tensor, replacing one of the same name.
    ///
    /// # Errors
    /// [`Error::Entry`] if the name is the header's own (`__metadata__`) or the rank is above 8.
    pub fn put<T: Stored>(&mut self, name: impl Into<String>, tensor: &Tensor<T>) -> Result<()> {
        let bytes = match tensor.as_slice() {
            Some(elements) => bytemuck::cast_slice(elements).to_vec(),
            None => bytemuck::cast_slice(&tensor.to_vec()).to_vec(),
        };
        let (name, shape) = (name.into(), tensor.shape().to_vec());
        if name == "__metadata__" || shape.len() > MAX_RANK {
            let reason = format!("no name or shape ({shape:?}) for a tensor in a file");
            return Err(Error::Entry { name, reason });
        }
        let range = 0..bytes.len();
        let entry = Entry { dtype: T::DTYPE, shape, owner: Arc::new(bytes), range };
        self.tensors.insert(name, entry);
        Ok(())
    }

    /// Takes a tensor out; whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        self.tensors.remove(name).is_some()
    }

    /// The tensor called `name`, on the container's own bytes where they are aligned.
    ///
    /// # Errors
    /// [`Error::Entry`] if there is none, or its elements are not `T`.
    pub fn get<T: Stored>(&self, name: &str) -> Result<Tensor<T>> {
        let refuse = |reason| Error::Entry { name: name.into(), reason };
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| refuse("the file has no tensor of this name".into()))?;
        if entry.dtype != T::DTYPE {
            let (has, needs) = (entry.dtype.name(), T::DTYPE.name());
            return Err(refuse(format!("its elements are {has}, but {needs} is needed")));
        }
        // Checked when it was read: the shape fits memory, and the bytes fit the shape.
        Ok(Tensor::from_shared(&entry.shape, &entry.owner, entry.range.clone())?)
    }

    /// Reads a container from shared bytes: a `Vec<u8>`, an `Arc<[u8]>`, a memory map. Tensors borrow
    /// from them. Files of the same layout from other tools are read too.
    ///
    /// # Errors
    /// [`Error::File`], naming the byte, if the bytes are cut off or contradict themselves;
    /// [`Error::Entry`], naming the tensor, if its shape and its bytes disagree.
    pub fn read(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self> {
        let owner: SharedBytes = Arc::new(bytes);
        let whole = (*owner).as_ref();
        let (header, data) = split(whole)?;
        let start = whole.len() - data.len();
        let mut container = Self::default();
        let mut reader = Reader::new("header", header);
        reader.object(|reader, name| {
            if name == "__metadata__" {
                return reader.object(|reader, key| {
                    let value = reader.string()?.into_owned();
                    container.metadata.insert(key.into(), value);
                    Ok(())
                });
            }
            let (dtype, shape, range) = read_info(reader, name, data.len())?;
            let range = start + range.start..start + range.end;
            let entry = Entry { dtype, shape, owner: Arc::clone(&owner), range };
            container.tensors.insert(name.into(), entry);
            Ok(())
        })?;
        reader.end()?;
        container.check_coverage(start, whole.len())?;
        container.check_version()?;
        Ok(container)
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut order: Vec<(&String, &Entry)> = self.tensors.iter().collect();
        order.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.dtype.size()));

        let mut header = String::from("{\"__metadata__\":{");
        let own = [("format", FORMAT), ("version", VERSION)];
        let others = self.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let others = others.filter(|(key, _)| own.iter().all(|(own, _)| own != key));
        for (i, (key, value)) in own.into_iter().chain(others).enumerate() {
            header.push_str(if i == 0 { "" } else { "," });
            quote(&mut header, key);
            header.push(':');
            quote(&mut header, value);
        }
        header.push('}');
        let mut end = 0;
        for (name, entry) in &order {
            header.push(',');
            quote(&mut header, name);
            let start = end;
            end += entry.range.len();
            header.push_str(&format!(":{{\"dtype\":\"{}\",\"shape\":[", entry.dtype.name()));
            for (i, size) in entry.shape.iter().enumerate() {
                header.push_str(if i == 0 { "" } else { "," });
                header.push_str(&size.to_string());
            }
            header.push_str(&format!("],\"data_offsets\":[{start},{end}]}}"));
        }
        header.push('}');
        let padded = (8 + header.len()).next_multiple_of(ALIGN) - 8;
        header.extend(std::iter::repeat_n(' ', padded - header.len()));

        let mut bytes = Vec::with_capacity(8 + padded + end);
        bytes.extend((padded as u64).to_le_bytes());
        bytes.extend(header.as_bytes());
        order.iter().for_each(|(_, entry)| bytes.extend(entry.bytes()));
        bytes
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`]; as [`read`](Self::read).
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| Error::Io {
            path: path.to_path_buf(),
            reason: format!("cannot read: {error}"),
        })?;
        Self::read(bytes)
    }

    /// Writes a file, all of it or nothing ([`write_atomic`]).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomic(path, &self.to_bytes())
    }

    /// Every byte of the data belongs to one tensor, as safetensors demands.
    fn check_coverage(&self, start: usize, end: usize) -> Result<()> {
        let mut ranges: Vec<(&String, &Range<usize>)> =
            self.tensors.iter().map(|(name, entry)| (name, &entry.range)).collect();
        ranges.sort_by_key(|(_, range)| (range.start, range.end));
        let mut at = start;
        for (name, range) in ranges {
            if range.start != at {
                return Err(Error::Entry {
                    name: name.clone(),
                    reason: format!(
                        "its bytes begin at {} of the file, but those of the tensor before end at {at}",
                        range.start
                    ),
                });
            }
            at = range.end;
        }
        if at != end {
            let reason = format!("{} bytes behind the last tensor", end - at);
            return Err(Error::File { part: "file", offset: at, reason });
        }
        Ok(())
    }

    fn check_version(&mut self) -> Result<()> {
        if self.metadata.get("format").is_some_and(|format| format == FORMAT) {
            let version = self.metadata.remove("version").unwrap_or_default();
            self.metadata.remove("format");
            if version != VERSION {
                return Err(Error::Entry {
                    name: "version".into(),
                    reason: format!(
                        "the file is of version {version:?}; this build reads version {VERSION}"
                    ),
                });
            }
        }
        Ok(())
    }
}

/// The header's text and the bytes behind it.
fn split(bytes: &[u8]) -> Result<(&str, &[u8])> {
    let refuse = |part, offset, reason| Error::File { part, offset, reason };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        let reason = format!("{} bytes are too few for a model file", bytes.len());
        return Err(refuse("file", bytes.len(), reason));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().filter(|&n| n <= rest.len().min(MAX_HEADER));
    let Some(header) = header else {
        let reason = format!(
            "the header would be {length} bytes long, but only {} follow (and at most {MAX_HEADER} are allowed); this is no model file, or it was cut off",
            rest.len()
        );
        return Err(refuse("file", 0, reason));
    };
    let (header, data) = rest.split_at(header);
    let header = std::str::from_utf8(header)
        .map_err(|error| refuse("header", error.valid_up_to(), "not UTF-8".into()))?;
    Ok((header, data))
}

/// `{"dtype":…,"shape":[…],"data_offsets":[start,end]}`, checked against each other and the data.
fn read_info(
    reader: &mut Reader<'_>,
    name: &str,
    data_len: usize,
) -> Result<(Dtype, Vec<usize>, Range<usize>)> {
    let (mut dtype, mut shape, mut offsets) = (None, None, None);
    reader.object(|reader, key| {
        match key {
            "dtype" => {
                let word = reader.string()?;
                dtype = Some(Dtype::named(&word).ok_or_else(|| {
                    reader.error(format!("tensor {name:?} has the unknown element type {word:?}"))
                })?);
            }
            "shape" => shape = Some(reader.numbers::<usize, MAX_RANK>()?),
            "data_offsets" => offsets = Some(reader.numbers::<usize, 2>()?),
            _ => return Err(reader.error(format!("tensor {name:?} has the unknown field {key:?}"))),
        }
        Ok(())
    })?;
    let refuse = |reason: String| Err(Error::Entry { name: name.into(), reason });
    let (Some(dtype), Some((shape, rank)), Some(([start, end], 2))) = (dtype, shape, offsets)
    else {
        return refuse("needs a dtype, a shape and two data_offsets".into());
    };
    let shape = &shape[..rank];
    if start > end || end > data_len {
        return refuse(format!(
            "its bytes are {start}..{end} of the data, of which the file has {data_len}"
        ));
    }
    // A zero makes a tensor empty, but its other sizes must still be addressable.
    let addressable = |n: &usize| *n <= isize::MAX as usize;
    let bound = shape
        .iter()
        .try_fold(dtype.size(), |n, &size| n.checked_mul(size.max(1)).filter(addressable));
    let bytes = bound.map(|bytes| if shape.contains(&0) { 0 } else { bytes });
    if bytes != Some(end - start) {
        return refuse(format!(
            "shape {shape:?} of {} does not fit its {} bytes",
            dtype.name(),
            end - start
        ));
    }
    Ok((dtype, shape.to_vec(), start..end))
}
