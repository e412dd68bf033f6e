//! Numbers in a file, checked.

use ottava_tensor::Tensor;

use super::proto::{TensorProto, data_type};
use crate::dtype::Dtype;

/// A constant as integers or floats.
#[derive(Clone, Debug)]
pub(super) enum Constant {
    /// Any float type.
    Float(Tensor<f32>),
    /// Any integer type.
    Int(Vec<i64>),
}

impl Constant {
    /// Reads a tensor of the file.
    pub(super) fn new(proto: &TensorProto) -> Result<Self, String> {
        if proto.data_location != 0 {
            return Err("its numbers lie in another file; save the model in one file".into());
        }
        let shape =
            proto.dims.iter().map(|&dim| usize::try_from(dim)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| format!("shape {:?} has a negative size", proto.dims))?;
        let len = shape.iter().try_fold(1usize, |len, &dim| len.checked_mul(dim));
        let len = len.ok_or_else(|| format!("shape {shape:?} overflows"))?;
        let fits = |found: usize| match found == len {
            true => Ok(()),
            false => Err(format!("shape {shape:?} holds {len} numbers, but the file has {found}")),
        };
        let raw = &proto.raw_data;
        let float = |dtype: Dtype, typed: Vec<f32>| -> Result<Self, String> {
            let numbers = if raw.is_empty() { typed } else { whole(dtype, raw)? };
            fits(numbers.len())?;
            Ok(Self::Float(Tensor::new(&shape, numbers).map_err(|error| error.to_string())?))
        };
        let int = |size: usize, signed: bool, typed: Vec<i64>| -> Result<Self, String> {
            let numbers = if raw.is_empty() { typed } else { integers(size, signed, raw)? };
            fits(numbers.len())?;
            Ok(Self::Int(numbers))
        };
        let narrow = || proto.int32_data.iter().map(|&x| i64::from(x)).collect();
        // Half floats lie in the integers' list, as bits.
        let halves = |dtype: Dtype| {
            let bytes = proto.int32_data.iter().flat_map(|&bits| (bits as u16).to_le_bytes());
            dtype.numbers(&bytes.collect::<Vec<u8>>())
        };
        match proto.data_type {
            data_type::FLOAT => float(Dtype::F32, proto.float_data.clone()),
            data_type::DOUBLE => {
                float(Dtype::F64, proto.double_data.iter().map(|&x| x as f32).collect())
            }
            data_type::FLOAT16 => float(Dtype::F16, halves(Dtype::F16)),
            data_type::BFLOAT16 => float(Dtype::BF16, halves(Dtype::BF16)),
            data_type::INT64 => int(8, true, proto.int64_data.clone()),
            data_type::INT32 => int(4, true, narrow()),
            data_type::INT16 => int(2, true, narrow()),
            data_type::INT8 => int(1, true, narrow()),
            data_type::UINT8 | data_type::BOOL => int(1, false, narrow()),
            other => Err(format!("element type {other} is not read")),
        }
    }

    /// The floats.
    pub(super) fn float(&self) -> Option<&Tensor<f32>> {
        match self {
            Self::Float(tensor) => Some(tensor),
            Self::Int(..) => None,
        }
    }

    /// The integers.
    pub(super) fn ints(&self) -> Option<&[i64]> {
        match self {
            Self::Float(_) => None,
            Self::Int(numbers) => Some(numbers),
        }
    }
}

fn whole(dtype: Dtype, raw: &[u8]) -> Result<Vec<f32>, String> {
    if !raw.len().is_multiple_of(dtype.size()) {
        return Err(format!("{} bytes are no whole number of {dtype:?}", raw.len()));
    }
    Ok(dtype.numbers(raw))
}

fn integers(size: usize, signed: bool, raw: &[u8]) -> Result<Vec<i64>, String> {
    if !raw.len().is_multiple_of(size) {
        return Err(format!("{} bytes are no whole number of {size}-byte integers", raw.len()));
    }
    Ok(raw
        .chunks_exact(size)
        .map(|bytes| {
            let negative = signed && bytes[size - 1] >= 0x80;
            let mut wide = [if negative { 0xff } else { 0 }; 8];
            wide[..size].copy_from_slice(bytes);
            i64::from_le_bytes(wide)
        })
        .collect())
}
