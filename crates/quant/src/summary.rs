use crate::instr::conv_geometry;
use crate::{Elements, Instr, Program, ValueId};

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
        let macs = match &node.instr {
            Instr::Conv { layer, attrs, .. } => {
                conv_geometry(layer, *attrs, x).map_or(0, |geometry| geometry.macs())
            }
            Instr::Linear { layer, .. } => layer.codes.len() as u64,
            Instr::Quantize(_)
            | Instr::Dequantize
            | Instr::Add { .. }
            | Instr::MaxPool(_)
            | Instr::AvgPool { .. }
            | Instr::Relu
            | Instr::Slice { .. }
            | Instr::Pad { .. }
            | Instr::Flatten => 0,
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
        }
    }
}
