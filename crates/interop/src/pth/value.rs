//! What a pickle is made of.
//!
//! Values that can hold others live in a [`Heap`] and are named by their place in it: a list that
//! holds itself costs nothing, and neither reading nor dropping recurses.

use std::rc::Rc;

use crate::dtype::Dtype;

/// What the machine's stack, its memo and its containers hold.
#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Text(Rc<str>),
    /// Bytes, and integers beyond 64 bits: nothing we would look into.
    Opaque,
    Tuple(usize),
    List(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// Everything that a pickle may name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Storage(Dtype),
}

impl Global {
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "Size") => Self::Size,
            ("torch" | "torch.storage", name) => Self::Storage(match name {
                "DoubleStorage" => Dtype::F64,
                "FloatStorage" => Dtype::F32,
                "HalfStorage" => Dtype::F16,
                "BFloat16Storage" => Dtype::BF16,
                "LongStorage" => Dtype::I64,
                "IntStorage" => Dtype::I32,
                "ShortStorage" => Dtype::I16,
                "CharStorage" => Dtype::I8,
                "ByteStorage" => Dtype::U8,
                "BoolStorage" => Dtype::Bool,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

/// Numbers that lie outside the pickle.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) key: Rc<str>,
    pub(super) dtype: Dtype,
}

/// A view of a storage; nothing about it has been checked yet.
#[derive(Debug)]
pub(super) struct Strided {
    pub(super) storage: usize,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// Everything that values refer to.
#[derive(Default, Debug)]
pub(super) struct Heap {
    pub(super) tuples: Vec<Vec<Value>>,
    pub(super) lists: Vec<Vec<Value>>,
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<Strided>,
}

impl Heap {
    /// The items of a list or a tuple.
    pub(super) fn items(&self, value: &Value) -> Option<&[Value]> {
        match value {
            Value::Tuple(id) => Some(&self.tuples[*id]),
            Value::List(id) => Some(&self.lists[*id]),
            _ => None,
        }
    }

    /// Keys and values of a dictionary, in the order they were set.
    pub(super) fn entries(&self, value: &Value) -> Option<&[(Value, Value)]> {
        match value {
            Value::Dict(id) => Some(&self.dicts[*id]),
            _ => None,
        }
    }

    /// The characters of a text.
    pub(super) fn text<'a>(&self, value: &'a Value) -> Option<&'a str> {
        match value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn tuple(&mut self, items: Vec<Value>) -> Value {
        self.tuples.push(items);
        Value::Tuple(self.tuples.len() - 1)
    }

    pub(super) fn list(&mut self, items: Vec<Value>) -> Value {
        self.lists.push(items);
        Value::List(self.lists.len() - 1)
    }

    pub(super) fn dict(&mut self, entries: Vec<(Value, Value)>) -> Value {
        self.dicts.push(entries);
        Value::Dict(self.dicts.len() - 1)
    }

    /// A list of sizes, offsets or strides.
    pub(super) fn sizes(&self, value: &Value, most: usize) -> Option<Vec<usize>> {
        let size = |value: &Value| match value {
            Value::Int(size) => usize::try_from(*size).ok(),
            _ => None,
        };
        self.items(value).filter(|items| items.len() <= most)?.iter().map(size).collect()
    }
}
