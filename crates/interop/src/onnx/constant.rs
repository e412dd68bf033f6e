//! Numbers in a file, checked.

use std::collections::HashMap;
use std::sync::Arc;

use ottava_tensor::Tensor;

use super::attributes::Check;
use super::proto::{Node, TensorProto, data_type};
use crate::dtype::Dtype;

/// No tensor has more axes. Nodes share the numbers of a constant, but each has the shape.
pub(super) const MAX_RANK: usize = 16;

/// A constant as integers or floats.
#[derive(Clone, Debug)]
pub(super) enum Constant {
    /// Any float type.
    Float(Tensor<f32>),
    /// Any integer type.
    Int(Integers),
}

/// Integers of any type.
#[derive(Clone, Debug)]
pub(super) struct Integers {
    /// As many sizes as axes.
    pub shape: Vec<usize>,
    /// In row-major order.
    pub numbers: Arc<[i64]>,
    /// Which type, one of [`data_type`].
    pub data_type: i32,
}

impl Constant {
    /// Reads a tensor of the file.
    pub(super) fn new(proto: &TensorProto) -> Result<Self, String> {
        if proto.data_location != 0 {
            return Err("its numbers lie in another file; save the model in one file".into());
        }
        if proto.dims.len() > MAX_RANK {
            return Err(format!("{} axes; no tensor has more than {MAX_RANK}", proto.dims.len()));
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
            let (shape, numbers) = (shape.clone(), numbers.into());
            Ok(Self::Int(Integers { shape, numbers, data_type: proto.data_type }))
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

    /// What a `Constant` node holds.
    pub(super) fn of_node(node: &Node) -> Check<Self> {
        let ints = |shape: &[usize], numbers: &[i64]| {
            let (shape, numbers) = (shape.to_vec(), numbers.into());
            Self::Int(Integers { shape, numbers, data_type: data_type::INT64 })
        };
        Ok(if let Some(attribute) = node.raw("value") {
            Self::new(attribute.t.as_ref().ok_or("its value is no tensor")?)?
        } else if let Some(attribute) = node.raw("value_float") {
            Self::Float(Tensor::scalar(attribute.f))
        } else if let Some(attribute) = node.raw("value_floats") {
            let values = &attribute.floats;
            Self::Float(Tensor::new(&[values.len()], values).map_err(|e| e.to_string())?)
        } else if let Some(attribute) = node.raw("value_int") {
            ints(&[], &[attribute.i])
        } else if let Some(attribute) = node.raw("value_ints") {
            ints(&[attribute.ints.len()], &attribute.ints)
        } else {
            return Err("a constant of texts or of a sparse tensor".into());
        })
    }

    /// How many numbers there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Float(tensor) => tensor.len(),
            Self::Int(integers) => integers.numbers.len(),
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
    pub(super) fn ints(&self) -> Option<&Arc<[i64]>> {
        match self {
            Self::Float(_) => None,
            Self::Int(integers) => Some(&integers.numbers),
        }
    }
}

/// The constants of a file, by name.
#[derive(Default)]
pub(super) struct Constants(HashMap<String, Constant>);

impl Constants {
    /// Those that stand before all nodes.
    pub(super) fn of_graph(tensors: &[TensorProto]) -> Check<Self> {
        let mut constants = Self::default();
        for tensor in tensors {
            let constant = Constant::new(tensor)
                .map_err(|reason| format!("constant {:?}: {reason}", tensor.name))?;
            constants.insert(&tensor.name, constant);
        }
        Ok(constants)
    }

    pub(super) fn insert(&mut self, name: &str, constant: Constant) {
        self.0.insert(name.to_string(), constant);
    }

    /// How many numbers there are in all.
    pub(super) fn len(&self) -> usize {
        self.0.values().map(Constant::len).sum()
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn named(&self, name: &str) -> Option<&Constant> {
        self.0.get(name)
    }

    /// What a node reads at `index`, if that is a constant.
    pub(super) fn of(&self, node: &Node, index: usize) -> Option<&Constant> {
        self.named(node.input(index)?)
    }

    /// The float constant that a node reads at `index`, and its name.
    pub(super) fn floats(&self, node: &Node, index: usize) -> Check<(String, Tensor<f32>)> {
        let name = node.input(index).ok_or_else(|| format!("input {index} is missing"))?;
        match self.named(name).and_then(Constant::float) {
            Some(tensor) => Ok((name.to_string(), tensor.clone())),
            None => Err(format!("{name:?} must be a constant of floats")),
        }
    }

    /// The one float that a node reads at `index`; `None` where it is left out.
    pub(super) fn scalar(&self, node: &Node, index: usize, what: &str) -> Check<Option<f32>> {
        match (node.input(index), self.of(node, index).and_then(Constant::float)) {
            (None, _) => Ok(None),
            (_, Some(value)) => value.item().map(Some).map_err(|error| format!("{what}: {error}")),
            (Some(_), None) => Err(format!("{what} must be a constant")),
        }
    }

    /// The integers at input `index`, or in the attribute `name` (older versions of the operators).
    pub(super) fn integers(
        &self,
        node: &Node,
        index: usize,
        name: &str,
    ) -> Check<Option<Arc<[i64]>>> {
        if let Some(values) = node.ints(name) {
            return Ok(Some(values.into()));
        }
        match (node.input(index), self.of(node, index).and_then(Constant::ints)) {
            (None, _) => Ok(None),
            (_, Some(values)) => Ok(Some(values.clone())),
            (Some(_), None) => {
                Err(format!("{name} must be constant; export the model with fixed sizes"))
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_counted() {
        let ones = |rank: usize| TensorProto {
            dims: vec![1; rank],
            data_type: data_type::FLOAT,
            float_data: vec![0.5],
            ..Default::default()
        };
        assert!(Constant::new(&ones(MAX_RANK)).is_ok());
        assert!(Constant::new(&ones(MAX_RANK + 1)).unwrap_err().contains("17 axes"));
    }
}
