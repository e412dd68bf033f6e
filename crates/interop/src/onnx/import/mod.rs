//! From an ONNX file to a graph that trains.

mod budget;
mod integer;
mod layers;
mod shapes;
mod window;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use ottava_autograd::{Graph, GraphNode, Kind, Leaf, NodeId, NodeKind, Op};
use ottava_tensor::Tensor;
use prost::Message;

use super::attributes::Check;
use super::constant::{Constant, Constants};
use super::proto::{self, Size, data_type, too_many_messages};
use crate::{Error, Result};
use budget::Budget;

pub use integer::{onnx_is_quantized, onnx_program_from_bytes, read_onnx_program};

/// A float network from an ONNX file.
#[derive(Clone, Debug)]
pub struct OnnxNetwork {
    /// The network; its leaves are the file's constants.
    pub graph: Graph,
    /// The file's metadata: class names, preprocessing.
    pub metadata: BTreeMap<String, String>,
    /// The version of ONNX's operators that the file uses.
    pub opset: i64,
}

/// The versions of ONNX's operators that are understood.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=26;
/// Elements that any value may have for one image.
const MAX_ELEMENTS: usize = 1 << 28;

/// Reads a float classifier.
///
/// Operators: `Conv` (any groups), `BatchNormalization`, `Relu`, `Clip`, `Add`, `Sub`, `Mul` and
/// `Div` (the latter two by a constant), `MaxPool`, `AveragePool`, `GlobalAveragePool`, `Gemm`,
/// `MatMul`, `Concat`, `Flatten`, `Reshape`, `Squeeze`, `ReduceMean` over an image, `Softmax`, `LogSoftmax`,
/// `Slice`, `Pad`, `Constant`, `Identity`, `Dropout`, `Cast`. The batch is the first axis of the one
/// input; the other sizes must be fixed.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] for a damaged file, [`Error::Unsupported`] naming the node whose
/// operator, attributes or shapes are not among the above.
///
/// # Source
/// ONNX's operator documentation, versions 7 to 26.
pub fn read_onnx(path: &Path) -> Result<OnnxNetwork> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, &error))?;
    onnx_from_bytes(&path.display().to_string(), &bytes)
}

/// The same from memory; `name` stands for the path in errors.
///
/// # Errors
/// As [`read_onnx`].
pub fn onnx_from_bytes(name: &str, bytes: &[u8]) -> Result<OnnxNetwork> {
    let model = decode(name, bytes)?;
    let opset = opset(name, &model)?;
    let graph = model.graph.as_ref().ok_or_else(|| Error::format(name, "no graph in it"))?;
    let graph = Importer::run(graph, opset).map_err(|reason| Error::unsupported(name, reason))?;
    let metadata = model.metadata_props.into_iter().map(|entry| (entry.key, entry.value));
    Ok(OnnxNetwork { graph, metadata: metadata.collect(), opset })
}

pub(super) fn decode(name: &str, bytes: &[u8]) -> Result<proto::Model> {
    if too_many_messages(bytes) {
        return Err(Error::unsupported(
            name,
            "more nodes, tensors and values than any network has",
        ));
    }
    let model = proto::Model::decode(bytes)
        .map_err(|error| Error::format(name, format!("damaged ONNX file: {error}")))?;
    if model.graph.is_none() && model.opset_import.is_empty() {
        return Err(Error::format(name, "not an ONNX file: neither graph nor operator version"));
    }
    Ok(model)
}

pub(super) fn opset(name: &str, model: &proto::Model) -> Result<i64> {
    let ours = |set: &&proto::OperatorSet| matches!(&*set.domain, "" | "ai.onnx");
    let version = model.opset_import.iter().find(ours).map_or(1, |set| set.version);
    if !OPSETS.contains(&version) {
        let reason = format!(
            "operators of version {version}; {} to {} are understood",
            OPSETS.start(),
            OPSETS.end()
        );
        return Err(Error::unsupported(name, reason));
    }
    Ok(version)
}

/// The names that a file has given a meaning.
struct Defined(HashSet<String>);

impl Defined {
    /// Those of the constants that stand before all nodes.
    fn constants(graph: &proto::Graph) -> Check<Self> {
        let mut defined = Self(HashSet::new());
        graph.initializer.iter().try_for_each(|tensor| defined.claim(&tensor.name))?;
        Ok(defined)
    }

    /// Gives `name` a meaning, which it may not have yet.
    fn claim(&mut self, name: &str) -> Check<()> {
        match self.0.insert(name.to_string()) {
            true => Ok(()),
            false => Err(format!("{name:?} is defined twice")),
        }
    }

    /// Claims the node's first output.
    fn output<'a>(&mut self, node: &'a proto::Node) -> Check<&'a str> {
        let name = node.output.first().ok_or("it has no output")?;
        self.claim(name)?;
        Ok(name)
    }
}

/// The file's input.
struct Input<'a> {
    name: &'a str,
    /// The size of the batch, where the file fixes it.
    batch: Option<usize>,
    /// The sizes behind the batch.
    shape: Vec<usize>,
}

/// The one input that is no constant, its name claimed.
fn input_of<'a>(graph: &'a proto::Graph, defined: &mut Defined) -> Check<Input<'a>> {
    let open = graph.input.iter().filter(|value| !defined.0.contains(&value.name));
    // An error names a few of them.
    let inputs: Vec<_> = open.take(10).collect();
    let [input] = inputs[..] else {
        let names: Vec<&str> = inputs.iter().map(|value| &*value.name).collect();
        return Err(format!("inputs {names:?}; a classifier has one"));
    };
    defined.claim(&input.name)?;
    let tensor = input.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
    let tensor = tensor.filter(|tensor| tensor.elem_type == data_type::FLOAT);
    let tensor = tensor.ok_or_else(|| format!("input {:?} is no tensor of f32", input.name))?;
    let dims = tensor.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
    let size = |dim: &proto::Dimension| match dim.value {
        Some(Size::Known(size)) => usize::try_from(size).ok().filter(|&size| size > 0),
        Some(Size::Open(_)) | None => None,
    };
    let batch = dims.first().and_then(size);
    let shape: Option<Vec<usize>> = dims.iter().skip(1).map(size).collect();
    match shape {
        Some(shape) if matches!(dims.len(), 2 | 4) => {
            check_elements(&shape)?;
            Ok(Input { name: &input.name, batch, shape })
        }
        _ => Err(format!(
            "input {:?} must have shape [batch, c, h, w] or [batch, k], all but the batch fixed; \
             export the model with fixed sizes",
            input.name
        )),
    }
}

fn check_elements(shape: &[usize]) -> Check<()> {
    let elements = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    match elements {
        Some(1..=MAX_ELEMENTS) => Ok(()),
        _ => Err(format!("a value of shape {shape:?} is empty, or beyond {MAX_ELEMENTS} elements")),
    }
}

/// Channels, height and width.
fn image_of(shape: &[usize]) -> Check<[usize; 3]> {
    shape.try_into().map_err(|_| format!("needs an image, not shape {shape:?}"))
}

/// The graph so far.
struct Importer {
    opset: i64,
    constants: Constants,
    defined: Defined,
    /// The size of the batch, where the file fixes it.
    batch: Option<usize>,
    /// What each of the file's names stands for.
    values: HashMap<String, NodeId>,
    /// How often each of the file's names is read.
    uses: HashMap<String, usize>,
    /// How often each node's value is read, under all its names: nodes that do nothing give it further ones.
    readers: HashMap<NodeId, usize>,
    nodes: Vec<GraphNode>,
    /// The shape of each node's value, without the batch; of a leaf, all of it.
    shapes: Vec<Vec<usize>>,
    /// Leaves by the constant they were made of.
    leaves: HashMap<String, NodeId>,
    /// For the numbers of the leaves.
    budget: Budget,
    names: Names,
}

impl Importer {
    fn run(graph: &proto::Graph, opset: i64) -> Check<Graph> {
        let mut defined = Defined::constants(graph)?;
        let Input { name: input, batch, shape } = input_of(graph, &mut defined)?;
        let mut importer = Self {
            opset,
            constants: Constants::of_graph(&graph.initializer)?,
            defined,
            batch,
            values: HashMap::new(),
            uses: HashMap::new(),
            readers: HashMap::new(),
            nodes: Vec::new(),
            shapes: Vec::new(),
            leaves: HashMap::new(),
            budget: Budget::default(),
            names: Names::default(),
        };
        importer.budget.read(importer.constants.len());
        let [output] = &graph.output[..] else {
            return Err(format!("{} outputs; a classifier has one", graph.output.len()));
        };
        let read = graph.node.iter().flat_map(|node| &node.input).chain([&output.name]);
        for name in read {
            *importer.uses.entry(name.clone()).or_default() += 1;
        }
        let name = importer.names.unique("input");
        importer.nodes.push(GraphNode { name, kind: NodeKind::Input(shape.clone()) });
        importer.shapes.push(shape);
        importer.values.insert(input.to_string(), 0);
        for node in &graph.node {
            importer.node(node).map_err(|reason| format!("{}: {reason}", node.label()))?;
        }
        let output = importer.value(&output.name)?;
        Graph::new(importer.nodes, output).map_err(|error| error.to_string())
    }

    fn node(&mut self, node: &proto::Node) -> Check<()> {
        node.check_attributes()?;
        if !matches!(&*node.domain, "" | "ai.onnx") {
            return Err(format!("operators of {:?} are not read", node.domain));
        }
        let result = match &*node.op_type {
            "Constant" => {
                let constant = Constant::of_node(node)?;
                self.budget.read(constant.len());
                return self.fixed(node, constant);
            }
            "Identity" | "Dropout" | "Cast" => return self.alias(node),
            "Conv" => self.conv(node)?,
            "BatchNormalization" => self.batch_norm(node)?,
            "Gemm" => self.gemm(node)?,
            "MatMul" => self.matmul(node)?,
            "Relu" => self.relu(node)?,
            "Clip" => self.clip(node)?,
            "Add" => self.add(node, false)?,
            "Sub" => self.add(node, true)?,
            "Mul" => self.mul(node, false)?,
            "Div" => self.mul(node, true)?,
            "MaxPool" => self.max_pool(node)?,
            "AveragePool" => self.average_pool(node)?,
            "GlobalAveragePool" => self.global_average(node, true)?,
            "ReduceMean" => self.reduce_mean(node)?,
            "Concat" => self.concat(node)?,
            "Flatten" => self.flatten(node)?,
            "Reshape" => self.reshape(node)?,
            "Squeeze" => self.squeeze(node)?,
            "Slice" => self.slice(node)?,
            "Pad" => self.pad(node)?,
            "Softmax" => self.softmax(node, false)?,
            "LogSoftmax" => self.softmax(node, true)?,
            "QuantizeLinear" | "DequantizeLinear" | "QLinearConv" => {
                return Err("the file is quantized already; `read_onnx_program` reads it".into());
            }
            _ => return Err("this operator is not supported".into()),
        };
        self.define(node, result)
    }

    /// Says what the node's first output stands for.
    fn define(&mut self, node: &proto::Node, id: NodeId) -> Check<()> {
        let name = self.defined.output(node)?;
        *self.readers.entry(id).or_default() += self.uses.get(name).copied().unwrap_or(0);
        self.values.insert(name.to_string(), id);
        Ok(())
    }

    /// Says which constant the node's first output stands for.
    fn fixed(&mut self, node: &proto::Node, constant: Constant) -> Check<()> {
        let name = self.defined.output(node)?;
        self.constants.insert(name, constant);
        Ok(())
    }

    /// The output is the input.
    fn alias(&mut self, node: &proto::Node) -> Check<()> {
        let name = node.input(0).ok_or("it has no input")?;
        if node.op_type == "Cast" && node.int("to", 0) != i64::from(data_type::FLOAT) {
            return Err(format!("a cast to element type {}", node.int("to", 0)));
        }
        layers::check_evaluates(&self.constants, node)?;
        if let Some(constant) = self.constants.named(name).cloned() {
            return self.fixed(node, constant);
        }
        let id = self.value(name)?;
        self.define(node, id)
    }

    /// What a name stands for, which is not a constant.
    fn value(&self, name: &str) -> Check<NodeId> {
        self.values.get(name).copied().ok_or_else(|| match self.constants.contains(name) {
            true => format!("{name:?} is a constant, where a value was expected"),
            false => {
                format!("{name:?} is made by no node before; the nodes are unsorted or cyclic")
            }
        })
    }

    /// The value that the node reads at `index`.
    fn activation(&self, node: &proto::Node, index: usize) -> Check<NodeId> {
        self.value(node.input(index).ok_or_else(|| format!("input {index} is missing"))?)
    }

    /// Channels, height and width of an image.
    fn image(&self, id: NodeId) -> Check<[usize; 3]> {
        image_of(&self.shapes[id])
    }

    /// A leaf of what `make` makes of the constant `source`, in the way that `made` says: once, whoever
    /// reads it. Its name is the constant's, or, where that was made up by an exporter, `owner.role`.
    fn leaf(
        &mut self,
        kind: Kind,
        (source, constant): (&str, &Tensor<f32>),
        (made, make): (&str, impl FnOnce(&Tensor<f32>) -> Check<Tensor<f32>>),
        owner: &str,
        role: &str,
    ) -> Check<NodeId> {
        let key = format!("{source}\n{made}");
        if let Some(&id) = self.leaves.get(&key) {
            return Ok(id);
        }
        let tensor = make(constant)?;
        self.budget.make(tensor.len())?;
        let made_up = source.contains("::")
            || source.contains('/')
            || !source.contains('.')
            || source.ends_with(".weight_bias");
        let name = if made_up { format!("{owner}.{role}") } else { source.to_string() };
        let name = self.names.unique(&name);
        self.shapes.push(tensor.shape().to_vec());
        self.nodes.push(GraphNode { name, kind: NodeKind::Leaf(Leaf::new(kind, tensor)) });
        self.leaves.insert(key, self.nodes.len() - 1);
        Ok(self.nodes.len() - 1)
    }

    fn push(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        inputs: Vec<NodeId>,
        shape: Vec<usize>,
    ) -> Check<NodeId> {
        check_elements(&shape)?;
        let name = self.names.unique(name);
        self.nodes.push(GraphNode { name, kind: NodeKind::Op(op.into(), inputs) });
        self.shapes.push(shape);
        Ok(self.nodes.len() - 1)
    }
}

/// The names given so far.
#[derive(Default)]
struct Names(HashMap<String, usize>);

impl Names {
    /// `name`, or if that is taken, `name.1` and so on.
    fn unique(&mut self, name: &str) -> String {
        let mut result = name.to_string();
        loop {
            let count = self.0.entry(result.clone()).or_default();
            *count += 1;
            if *count == 1 {
                return result;
            }
            // The numbered name may itself be somebody's.
            result = format!("{name}.{}", *count - 1);
            if self.0.contains_key(&result) {
                result = name.to_string();
            }
        }
    }
}

/// What a node is called: the module that owns its weight, where the file tells.
fn owner(node: &proto::Node, weight: Option<&str>) -> String {
    let weight = weight.filter(|name| !name.contains("::") && !name.contains('/'));
    if let Some((module, _)) = weight.and_then(|name| name.rsplit_once('.')) {
        return module.to_string();
    }
    if !node.name.contains('/') {
        let name = if node.name.is_empty() { &node.op_type } else { &node.name };
        return name.to_lowercase();
    }
    // PyTorch's exporter writes scopes: /layer1/layer1.0/conv1/Conv is layer1.0.conv1.
    let mut module = String::new();
    let scopes: Vec<&str> = node.name.split('/').filter(|scope| !scope.is_empty()).collect();
    for scope in &scopes[..scopes.len().saturating_sub(1)] {
        let inside = scope.strip_prefix(&*module).is_some_and(|rest| rest.starts_with('.'));
        if inside {
            module.clear();
        } else if !module.is_empty() {
            module.push('.');
        }
        module.push_str(scope);
    }
    if module.is_empty() {
        return scopes.last().copied().unwrap_or_default().to_lowercase();
    }
    module
}

#[cfg(test)]
mod tests;
