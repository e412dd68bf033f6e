use ottava_tensor::conv::ConvAttrs;

use crate::instr::conv_geometry;
use crate::{Elements, FloatOp, Instr, Program, ValueId, ValueType};

/// What a program consists of, node by node: for reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The nodes, in order.
    pub nodes: Vec<NodeSummary>,
    /// Weights and biases of all nodes.
    pub params: usize,
    /// Bytes of all weights, scales and biases as a file holds them.
    pub bytes: usize,
    /// Multiply-accumulates for one image.
    pub macs: u64,
}

/// A row of a [`Summary`].
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSummary {
    /// The node's name.
    pub name: String,
    /// The operation's.
    pub op: &'static str,
    /// The shape of each input, for one image.
    pub inputs: Vec<Vec<usize>>,
    /// The shape of the output.
    pub output: Vec<usize>,
    /// What the elements of the output are.
    pub elements: Elements,
    /// Weights and biases.
    pub params: usize,
    /// Bytes of weights, scales and biases as a file holds them.
    pub bytes: usize,
    /// Bits of a weight: 8, 4, or 0 for a node without weights.
    pub weight_bits: u8,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// Why it computes in floats; empty if it does not.
    pub why: String,
}

impl NodeSummary {
    /// `u8` for codes, `f32` for floats.
    pub fn dtype(&self) -> &'static str {
        match self.elements {
            Elements::Codes(_) => "u8",
            Elements::Float => "f32",
        }
    }
}

impl Program {
    /// Shapes, sizes and costs of every node and in all.
    pub fn summary(&self) -> Summary {
        let nodes: Vec<NodeSummary> = (0..self.nodes().len()).map(|i| self.row(i)).collect();
        Summary {
            params: nodes.iter().map(|node| node.params).sum(),
            bytes: nodes.iter().map(|node| node.bytes).sum(),
            macs: nodes.iter().map(|node| node.macs).sum(),
            nodes,
        }
    }

    fn row(&self, index: usize) -> NodeSummary {
        let node = &self.nodes()[index];
        let x = self.value(node.inputs[0]);
        let y = self.value(ValueId::of_node(index));
        let (mut params, mut bytes, mut weight_bits) = (0, 0, 0);
        if let Some(layer) = node.instr.layer() {
            let weights = layer.codes.len();
            params = weights + layer.bias.len();
            weight_bits = if layer.fits_four_bits() { 4 } else { 8 };
            let weight_bytes = if weight_bits == 4 { weights.div_ceil(2) } else { weights };
            bytes = weight_bytes + 4 * (layer.scales.len() + layer.bias.len());
        }
        if let Instr::Float(op) = &node.instr {
            let floats: usize = op.constants().iter().map(|(_, constant)| constant.len()).sum();
            (params, bytes) = (floats, 4 * floats);
            if let FloatOp::DynamicLinear { codes, scales, .. } = op {
                (params, bytes) = (floats - scales.len() + codes.len(), bytes + codes.len());
                weight_bits = 8;
            }
        }
        let macs = match &node.instr {
            Instr::Conv { layer, attrs, .. } => conv_macs(layer.codes.shape(), *attrs, x),
            Instr::Linear { layer, .. } => layer.codes.len() as u64,
            Instr::Float(FloatOp::Conv { weight, attrs, .. }) => {
                conv_macs(weight.shape(), *attrs, x)
            }
            Instr::Float(FloatOp::Linear { weight, .. } | FloatOp::MatMul(weight)) => {
                weight.len() as u64
            }
            Instr::Float(FloatOp::DynamicLinear { codes, .. }) => codes.len() as u64,
            Instr::Quantize(_)
            | Instr::Dequantize
            | Instr::Add { .. }
            | Instr::MaxPool(_)
            | Instr::AvgPool { .. }
            | Instr::Clip(_)
            | Instr::Slice { .. }
            | Instr::Pad { .. }
            | Instr::Flatten
            | Instr::Reshape(_)
            | Instr::Concat { .. }
            | Instr::Float(_) => 0,
        };
        NodeSummary {
            name: node.name.clone(),
            op: node.instr.op(),
            inputs: node.inputs.iter().map(|&id| self.value(id).shape.clone()).collect(),
            output: y.shape.clone(),
            elements: y.elements,
            params,
            bytes,
            weight_bits,
            macs,
            why: node.why.clone(),
        }
    }
}

/// Multiply-accumulates of a convolution by a weight of that shape.
fn conv_macs(weight: &[usize], attrs: ConvAttrs, x: &ValueType) -> u64 {
    let weight: Result<[usize; 4], _> = weight.try_into();
    let geometry = weight.ok().and_then(|weight| conv_geometry(weight, attrs, x).ok());
    geometry.map_or(0, |geometry| geometry.macs())
}
