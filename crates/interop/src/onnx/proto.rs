//! The messages of ONNX that classifiers need, field numbers as in `onnx.proto`; everything else in a
//! file is passed over. Written by hand, so that building needs no protobuf compiler.

use prost::Message;

/// A file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Model {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(string, tag = "3")]
    pub producer_version: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<Entry>,
}

/// Which version of which operators.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OperatorSet {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// A line of metadata.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Entry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Nodes in order, constants, and what goes in and out.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfo>,
}

/// An operator and the names of what it reads and makes.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Node {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
    #[prost(string, tag = "7")]
    pub domain: String,
}

/// A named constant of a node. Subgraphs are passed over.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Attribute {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, tag = "2")]
    pub f: f32,
    #[prost(int64, tag = "3")]
    pub i: i64,
    #[prost(bytes = "vec", tag = "4")]
    pub s: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    pub t: Option<TensorProto>,
    #[prost(float, repeated, tag = "7")]
    pub floats: Vec<f32>,
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    pub kind: i32,
}

/// Numbers: raw little-endian bytes, or one of the typed lists.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
    /// 1 where the numbers lie in another file.
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

/// A value's name and type.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ValueInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<Type>,
}

/// The type of a value; tensors only.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Type {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorType>,
}

/// The element type and the shape of a tensor.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorType {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
}

/// The sizes of the axes.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Shape {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

/// A size, or the name of one that is open.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Dimension {
    #[prost(oneof = "Size", tags = "1, 2")]
    pub value: Option<Size>,
}

/// See [`Dimension`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Size {
    #[prost(int64, tag = "1")]
    Known(i64),
    #[prost(string, tag = "2")]
    Open(String),
}

/// Codes of [`TensorProto::data_type`].
pub(super) mod data_type {
    pub const FLOAT: i32 = 1;
    pub const UINT8: i32 = 2;
    pub const INT8: i32 = 3;
    pub const INT16: i32 = 5;
    pub const INT32: i32 = 6;
    pub const INT64: i32 = 7;
    pub const BOOL: i32 = 9;
    pub const FLOAT16: i32 = 10;
    pub const DOUBLE: i32 = 11;
    pub const BFLOAT16: i32 = 16;
}

/// Codes of [`Attribute::kind`].
pub(super) mod attribute_kind {
    pub const FLOAT: i32 = 1;
    pub const INT: i32 = 2;
    pub const INTS: i32 = 7;
}

/// Messages that a file may have. The smallest takes two bytes in a file and some two hundred in
/// memory: without a limit, a small file could ask for any amount of it.
const MAX_MESSAGES: usize = 1 << 20;

/// Whether a file has more messages than a network could need; counted without decoding them.
pub(super) fn too_many_messages(bytes: &[u8]) -> bool {
    let mut left = MAX_MESSAGES;
    !count(bytes, &MODEL, &mut left)
}

/// The fields of a message that are messages, and theirs.
struct Schema(&'static [(u64, &'static Schema)]);

static LEAF: Schema = Schema(&[]);
static ATTRIBUTE: Schema = Schema(&[(5, &LEAF)]);
static NODE: Schema = Schema(&[(5, &ATTRIBUTE)]);
static SHAPE: Schema = Schema(&[(1, &LEAF)]);
static TENSOR_TYPE: Schema = Schema(&[(2, &SHAPE)]);
static TYPE: Schema = Schema(&[(1, &TENSOR_TYPE)]);
static VALUE: Schema = Schema(&[(2, &TYPE)]);
static GRAPH: Schema = Schema(&[(1, &NODE), (5, &LEAF), (11, &VALUE), (12, &VALUE)]);
static MODEL: Schema = Schema(&[(7, &GRAPH), (8, &LEAF), (14, &LEAF)]);

/// Takes each message off `left`; false if that goes below zero, or where counting cannot follow the
/// decoder. Damage ends the count: the decoder will say what is wrong.
fn count(mut bytes: &[u8], schema: &Schema, left: &mut usize) -> bool {
    while let Some(tag) = varint(&mut bytes) {
        let length = match tag & 7 {
            0 => {
                varint(&mut bytes);
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes).unwrap_or(u64::MAX),
            5 => 4,
            // Groups, which ONNX has none of: the decoder skips them, and reads on behind.
            3 | 4 => return false,
            _ => return true,
        };
        let Some((field, rest)) =
            usize::try_from(length).ok().and_then(|n| bytes.split_at_checked(n))
        else {
            return true;
        };
        bytes = rest;
        let inner = schema.0.iter().find(|(number, _)| tag & 7 == 2 && *number == tag >> 3);
        if let Some((_, schema)) = inner {
            let Some(fewer) = left.checked_sub(1) else { return false };
            *left = fewer;
            if !count(field, schema, left) {
                return false;
            }
        }
    }
    true
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_messages_are_counted() {
        // graph { node {} node {} … }, two bytes each.
        let nodes = [0x0a, 0x00].repeat(MAX_MESSAGES + 1);
        let mut file = vec![0x3a];
        prost::encoding::encode_varint(nodes.len() as u64, &mut file);
        file.extend(nodes);
        assert!(too_many_messages(&file));
        assert!(!too_many_messages(&file[..1000]));
        // An empty group in front hides nothing.
        assert!(too_many_messages(&[&[0x7b, 0x7c], &file[..]].concat()));
    }
}
