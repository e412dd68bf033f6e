//! A file under construction.

use std::collections::{BTreeMap, HashSet};

use ottava_tensor::Tensor;
use prost::Message;

use super::super::proto::{
    Attribute, Dimension, Entry, Graph, Model, Node, OperatorSet, Shape, Size, TensorProto,
    TensorType, Type, ValueInfo, attribute_kind, data_type,
};
use super::OnnxOptions;

/// The domain of ONNX Runtime's own operators.
pub(super) const MICROSOFT: &str = "com.microsoft";
/// What the file calls its input, its output and the open size of the batch.
pub(super) const INPUT: &str = "input";
const OUTPUT: &str = "output";
const BATCH: &str = "batch";

/// Nodes and constants, in order, each with a name of its own.
#[derive(Default)]
pub(super) struct Writer {
    graph: Graph,
    names: HashSet<String>,
    microsoft: bool,
}

impl Writer {
    pub(super) fn new() -> Self {
        let mut writer = Self::default();
        writer.names.extend([INPUT, OUTPUT].map(String::from));
        writer
    }

    /// `name`, or if that is taken, `name_1` and so on.
    fn unique(&mut self, name: &str) -> String {
        let mut result = name.to_string();
        let mut count = 0;
        while !self.names.insert(result.clone()) {
            count += 1;
            result = format!("{name}_{count}");
        }
        result
    }

    /// Appends a node with one output; the name of the output.
    pub(super) fn node<I: AsRef<str>>(
        &mut self,
        op: &str,
        name: &str,
        inputs: impl IntoIterator<Item = I>,
        attribute: Vec<Attribute>,
    ) -> String {
        self.node_of("", op, name, inputs, attribute)
    }

    /// The same with an operator of a domain.
    pub(super) fn node_of<I: AsRef<str>>(
        &mut self,
        domain: &str,
        op: &str,
        name: &str,
        inputs: impl IntoIterator<Item = I>,
        attribute: Vec<Attribute>,
    ) -> String {
        self.microsoft |= domain == MICROSOFT;
        let [output] = self.push(domain, op, name, inputs, attribute);
        output
    }

    /// Appends a node with several outputs; their names.
    pub(super) fn nodes<I: AsRef<str>, const N: usize>(
        &mut self,
        op: &str,
        name: &str,
        inputs: impl IntoIterator<Item = I>,
    ) -> [String; N] {
        self.push("", op, name, inputs, vec![])
    }

    fn push<I: AsRef<str>, const N: usize>(
        &mut self,
        domain: &str,
        op: &str,
        name: &str,
        inputs: impl IntoIterator<Item = I>,
        attribute: Vec<Attribute>,
    ) -> [String; N] {
        let name = self.unique(name);
        let outputs = std::array::from_fn(|_| self.unique(&format!("{name}.out")));
        self.graph.node.push(Node {
            input: inputs.into_iter().map(|input| input.as_ref().to_string()).collect(),
            output: outputs.to_vec(),
            name,
            op_type: op.into(),
            attribute,
            domain: domain.into(),
        });
        outputs
    }

    fn constant(
        &mut self,
        name: &str,
        dims: &[usize],
        data_type: i32,
        raw_data: Vec<u8>,
    ) -> String {
        let name = self.unique(name);
        let dims = dims.iter().map(|&dim| dim as i64).collect();
        let tensor =
            TensorProto { dims, data_type, name: name.clone(), raw_data, ..Default::default() };
        self.graph.initializer.push(tensor);
        name
    }

    pub(super) fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        let raw = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.constant(name, dims, data_type::FLOAT, raw)
    }

    pub(super) fn tensor(&mut self, name: &str, tensor: &Tensor<f32>) -> String {
        self.floats(name, tensor.shape(), &tensor.to_vec())
    }

    pub(super) fn ints(&mut self, name: &str, values: &[i64]) -> String {
        let raw = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.constant(name, &[values.len()], data_type::INT64, raw)
    }

    pub(super) fn int32s(&mut self, name: &str, values: &[i32]) -> String {
        let raw = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.constant(name, &[values.len()], data_type::INT32, raw)
    }

    pub(super) fn u8s(&mut self, name: &str, dims: &[usize], values: Vec<u8>) -> String {
        self.constant(name, dims, data_type::UINT8, values)
    }

    pub(super) fn i8s(&mut self, name: &str, dims: &[usize], values: &[i8]) -> String {
        self.constant(name, dims, data_type::INT8, values.iter().map(|&x| x as u8).collect())
    }

    /// The file, whose answer is the value called `result`.
    pub(super) fn finish(
        mut self,
        result: &str,
        (input, output): (&[usize], &[usize]),
        metadata: &BTreeMap<String, String>,
        options: &OnnxOptions,
    ) -> Vec<u8> {
        self.graph.node.push(Node {
            input: vec![result.into()],
            output: vec![OUTPUT.into()],
            name: OUTPUT.into(),
            op_type: "Identity".into(),
            ..Default::default()
        });
        self.graph.name = "ottava".into();
        self.graph.input = vec![value(INPUT, input)];
        self.graph.output = vec![value(OUTPUT, output)];
        let mut opset_import = vec![OperatorSet { domain: String::new(), version: options.opset }];
        if self.microsoft {
            opset_import.push(OperatorSet { domain: MICROSOFT.into(), version: 1 });
        }
        let entry =
            |(key, value): (&String, &String)| Entry { key: key.clone(), value: value.clone() };
        let model = Model {
            ir_version: options.ir_version,
            producer_name: "ottava".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(self.graph),
            opset_import,
            metadata_props: metadata.iter().map(entry).collect(),
        };
        model.encode_to_vec()
    }
}

/// A tensor of floats for any number of images.
fn value(name: &str, shape: &[usize]) -> ValueInfo {
    let sizes = shape.iter().map(|&size| Size::Known(size as i64));
    let dim = std::iter::once(Size::Open(BATCH.into()))
        .chain(sizes)
        .map(|size| Dimension { value: Some(size) })
        .collect();
    let tensor = TensorType { elem_type: data_type::FLOAT, shape: Some(Shape { dim }) };
    ValueInfo { name: name.into(), r#type: Some(Type { tensor_type: Some(tensor) }) }
}

/// An integer attribute.
pub(super) fn int(name: &str, i: i64) -> Attribute {
    Attribute { name: name.into(), i, kind: attribute_kind::INT, ..Default::default() }
}

/// A float attribute.
pub(super) fn float(name: &str, f: f32) -> Attribute {
    Attribute { name: name.into(), f, kind: attribute_kind::FLOAT, ..Default::default() }
}

/// An attribute of several integers.
pub(super) fn ints(name: &str, values: &[usize]) -> Attribute {
    let ints = values.iter().map(|&value| value as i64).collect();
    Attribute { name: name.into(), ints, kind: attribute_kind::INTS, ..Default::default() }
}
