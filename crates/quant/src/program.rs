use std::collections::{BTreeMap, HashSet};

use crate::instr::check_input;
use crate::{Elements, Error, Instr, Result, ValueType};

/// Names a value of a program: its input, or what a node made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) usize);

impl ValueId {
    /// The program's input.
    pub const INPUT: Self = Self(0);

    /// What the node at `index` makes.
    pub fn of_node(index: usize) -> Self {
        Self(index + 1)
    }

    /// The node that makes the value; `None` for the input.
    pub fn node(self) -> Option<usize> {
        self.0.checked_sub(1)
    }
}

/// One step of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// A name of its own; for layers, the module's.
    pub name: String,
    /// What it does.
    pub instr: Instr,
    /// What it does it to.
    pub inputs: Vec<ValueId>,
    /// Why it computes in floats; empty if it does not, or nobody said.
    pub why: String,
}

/// An integer network: data only, checked once, so that running it cannot fail.
///
/// Nodes stand in the order they run; each makes one value. Shapes are those of one image, the
/// batch is free. An [`Engine`](crate::Engine) runs it; [`Program::save`] and [`Program::load`] keep
/// it in a file.
///
/// ```
/// use ottava_quant::{Engine, Instr, Program, QParams, Window};
/// use ottava_tensor::Tensor;
///
/// let mut builder = Program::builder(&[1, 2, 2])?;
/// let grid = QParams::new(0.5, 10, 0..=255)?;
/// let x = builder.push("input", Instr::Quantize(grid), &[builder.input()])?;
/// let x = builder.push("pool", Instr::MaxPool(Window::new(2, 2, 0)), &[x])?;
/// let x = builder.push("flatten", Instr::Flatten, &[x])?;
/// let program = builder.finish(x)?;
///
/// let image = Tensor::new(&[1, 1, 2, 2], [0.2, 1.4, -3.0, 0.9])?;
/// let y = Engine::new(&program)?.run(&image, &mut Default::default())?;
/// assert_eq!((y.shape(), y.to_vec()), (&[1, 1][..], vec![1.5]));
/// # Ok::<(), ottava_quant::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// The types of all values: the input's, then each node's.
    values: Vec<ValueType>,
    nodes: Vec<Node>,
    output: ValueId,
    metadata: BTreeMap<String, String>,
}

impl Program {
    /// Starts a program that takes `f32` images of shape `[c, h, w]`, or vectors `[k]`.
    ///
    /// # Errors
    /// [`Error::Node`] if the shape is empty, of another rank, or unreasonably large.
    pub fn builder(input: &[usize]) -> Result<Builder> {
        check_input(input).map_err(|reason| Error::Node {
            node: "input".into(),
            op: "input",
            reason,
        })?;
        let input = ValueType { shape: input.to_vec(), elements: Elements::Float };
        Ok(Builder { values: vec![input], nodes: vec![], names: HashSet::new() })
    }

    /// The shape of one input image.
    pub fn input_shape(&self) -> &[usize] {
        &self.values[0].shape
    }

    /// The shape of the result for one image.
    pub fn output_shape(&self) -> &[usize] {
        &self.value(self.output).shape
    }

    /// The value that running returns, as `f32`.
    pub fn output(&self) -> ValueId {
        self.output
    }

    /// The steps, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What is known of a value of this program.
    ///
    /// # Panics
    /// If the value belongs to another, longer program.
    pub fn value(&self, id: ValueId) -> &ValueType {
        &self.values[id.0]
    }

    /// What else belongs to the model and is stored with it: class names, preprocessing, ….
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// [`metadata`](Self::metadata), for writing.
    pub fn metadata_mut(&mut self) -> &mut BTreeMap<String, String> {
        &mut self.metadata
    }
}

/// Makes a [`Program`] node by node, checking each against the ones before it.
#[derive(Clone, Debug)]
pub struct Builder {
    values: Vec<ValueType>,
    nodes: Vec<Node>,
    names: HashSet<String>,
}

impl Builder {
    /// The program's input.
    pub fn input(&self) -> ValueId {
        ValueId::INPUT
    }

    /// What is known of a value made so far.
    ///
    /// # Panics
    /// If the value is not of this builder.
    pub fn value(&self, id: ValueId) -> &ValueType {
        &self.values[id.0]
    }

    /// Appends a node; its value.
    ///
    /// # Errors
    /// [`Error::Node`], naming the node, if the name is taken or empty, an input does not exist yet,
    /// or shapes, grids or parameters do not fit.
    pub fn push(
        &mut self,
        name: impl Into<String>,
        instr: Instr,
        inputs: &[ValueId],
    ) -> Result<ValueId> {
        let name = name.into();
        let refuse = |reason: String| Error::Node { node: name.clone(), op: instr.op(), reason };
        if name.is_empty() || self.names.contains(&name) {
            return Err(refuse("a node needs a name that no other node has".into()));
        }
        let types: Vec<&ValueType> = inputs
            .iter()
            .map(|id| {
                self.values.get(id.0).ok_or_else(|| {
                    refuse(format!(
                        "reads value {}, but only values 0 to {} come before it",
                        id.0,
                        self.values.len() - 1
                    ))
                })
            })
            .collect::<Result<_>>()?;
        let value = instr.check(&types).map_err(refuse)?;
        self.names.insert(name.clone());
        self.values.push(value);
        self.nodes.push(Node { name, instr, inputs: inputs.to_vec(), why: String::new() });
        Ok(ValueId(self.nodes.len()))
    }

    /// Says why the node that made `value` computes in floats: for reports.
    pub fn explain(&mut self, value: ValueId, why: impl Into<String>) {
        if let Some(node) = value.node().and_then(|node| self.nodes.get_mut(node)) {
            node.why = why.into();
        }
    }

    /// The program that returns `output`.
    ///
    /// # Errors
    /// [`Error::Node`] if `output` is not the value of a node.
    pub fn finish(self, output: ValueId) -> Result<Program> {
        if output == ValueId::INPUT || output.0 >= self.values.len() {
            return Err(Error::Node {
                node: "output".into(),
                op: "output",
                reason: format!(
                    "value {} is none of the values 1 to {} that nodes make",
                    output.0,
                    self.nodes.len()
                ),
            });
        }
        let Self { values, nodes, .. } = self;
        Ok(Program { values, nodes, output, metadata: BTreeMap::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, QParams, QuantizedLayer, Window};
    use ottava_tensor::Tensor;
    use ottava_tensor::conv::ConvAttrs;

    fn grid() -> QParams {
        QParams::new(0.1, 7, 0..=255).unwrap()
    }

    fn layer(shape: &[usize], bias: i32) -> QuantizedLayer {
        QuantizedLayer {
            codes: Tensor::full(shape, 127),
            scales: vec![0.01; shape[0]],
            bias: vec![bias; shape[0]],
        }
    }

    fn conv(layer: QuantizedLayer) -> Instr {
        Instr::Conv {
            layer,
            attrs: ConvAttrs::new(1, 1),
            output: grid(),
            activation: Activation::RELU,
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name_and_number() {
        let mut b = Program::builder(&[3, 8, 8]).unwrap();
        let input = b.input();
        let q = b.push("q", Instr::Quantize(grid()), &[input]).unwrap();
        let mut refused = |instr: Instr, inputs: &[ValueId], words: &str| {
            let error = b.push("x", instr, inputs).unwrap_err().to_string();
            assert!(error.contains("\"x\"") && error.contains(words), "{error}");
        };
        refused(
            Instr::Add { output: grid(), activation: Activation::NONE },
            &[input, q],
            "quantize it first",
        );
        refused(Instr::Quantize(grid()), &[q], "already");
        refused(Instr::Clip(Activation::RELU), &[ValueId(9)], "value 9");
        refused(
            Instr::Add { output: grid(), activation: Activation::NONE },
            &[q],
            "takes 2 inputs",
        );
        refused(conv(layer(&[4, 2, 3, 3], 0)), &[q], "expects 2");
        refused(conv(layer(&[4, 3, 3, 3], i32::MAX)), &[q], "beyond 32 bits");
        let attrs = ConvAttrs::new(1 << 29, 1 << 29);
        let far = Instr::Conv {
            layer: layer(&[4, 3, 3, 3], 0),
            attrs,
            output: grid(),
            activation: Activation::RELU,
        };
        refused(far, &[q], "larger");
        let without_zero = Activation { min: 1.0, max: 2.0 };
        refused(Instr::Add { output: grid(), activation: without_zero }, &[q, q], "no interval");
        let nan = Activation { min: f32::NAN, max: 2.0 };
        refused(Instr::Clip(nan), &[q], "no interval");
        let mut short = layer(&[4, 3, 3, 3], 0);
        short.bias.pop();
        refused(conv(short), &[q], "3 biases");
        let mut nan = layer(&[4, 3, 3, 3], 0);
        nan.scales[2] = f32::NAN;
        refused(conv(nan), &[q], "channel 2");
        let linear = Instr::Linear {
            layer: layer(&[4, 192], 0),
            output: grid(),
            activation: Activation::NONE,
        };
        refused(linear, &[q], "flatten it first");
        refused(Instr::MaxPool(Window::new(9, 1, 0)), &[q], "9×9");
        refused(Instr::Slice { axis: 0, start: 0, end: 1, step: 1 }, &[q], "axis 0");
        refused(Instr::Slice { axis: 2, start: 0, end: 9, step: 1 }, &[q], "size is 8");
        refused(Instr::Pad { axis: 1, before: usize::MAX, after: 0 }, &[q], "overflows");
        refused(Instr::Pad { axis: 1, before: 1 << 40, after: 0 }, &[q], "larger");
        let wide = QParams::new(1.0, 0, -32768..=32767).unwrap();
        refused(Instr::Add { output: wide, activation: Activation::NONE }, &[q, q], "byte");
    }

    #[test]
    fn names_are_unique_and_the_output_is_a_nodes() {
        let mut b = Program::builder(&[4]).unwrap();
        let q = b.push("q", Instr::Quantize(grid()), &[b.input()]).unwrap();
        assert!(b.push("q", Instr::Clip(Activation::RELU), &[q]).is_err());
        assert!(b.clone().finish(ValueId::INPUT).is_err());
        assert!(b.clone().finish(ValueId(2)).is_err());
        assert_eq!(b.finish(q).unwrap().output_shape(), [4]);
        assert!(Program::builder(&[]).is_err() && Program::builder(&[3, 0, 2]).is_err());
        assert!(Program::builder(&[usize::MAX, 2, 2]).is_err());
    }
}
