//! Integer programs, in both formats.

use ottava_quant::{Activation, Instr, Node, Program, QParams, QuantizedLayer, ValueId};

use super::super::proto::Attribute;
use super::float_op::{self, average_attributes, conv_attributes, window_attributes};
use super::writer::{INPUT, MICROSOFT, Writer, int};
use super::{OnnxFormat, OnnxOptions};
use crate::{Error, Result};

pub(super) fn write(program: &Program, options: &OnnxOptions) -> Result<Vec<u8>> {
    let mut export = Export { program, options, writer: Writer::new(), values: vec![INPUT.into()] };
    for node in program.nodes() {
        let value = export.node(node)?;
        export.values.push(value);
    }
    let result = export.float(program.output(), "dequantize");
    let shapes = (program.input_shape(), program.output_shape());
    Ok(export.writer.finish(&result, shapes, program.metadata(), options))
}

struct Export<'a> {
    program: &'a Program,
    options: &'a OnnxOptions,
    writer: Writer,
    /// What the file calls each value: with QDQ, always its floats; otherwise its codes, if it is
    /// codes.
    values: Vec<String>,
}

/// A grid as constants of the file: scale and zero-point.
type Grid = [String; 2];

impl Export<'_> {
    fn qdq(&self) -> bool {
        self.options.format == OnnxFormat::Qdq
    }

    fn name(&self, id: ValueId) -> String {
        self.values[id.node().map_or(0, |node| node + 1)].clone()
    }

    /// The grid of a value that `node` reads as codes.
    fn grid_of(&self, node: &Node, id: ValueId) -> Result<QParams> {
        self.program.value(id).grid().ok_or_else(|| {
            let reason = format!("`{}` computes in integers, but reads floats", node.name);
            Error::unsupported("ONNX export", reason)
        })
    }

    /// The floats of a value.
    fn float(&mut self, id: ValueId, name: &str) -> String {
        let value = self.name(id);
        match self.program.value(id).grid() {
            Some(grid) if !self.qdq() => {
                let [scale, zero] = self.grid(name, grid);
                self.writer.node("DequantizeLinear", name, [value, scale, zero], vec![])
            }
            _ => value,
        }
    }

    fn grid(&mut self, name: &str, grid: QParams) -> Grid {
        let grid = grid.to_unsigned();
        [
            self.writer.floats(&format!("{name}.scale"), &[], &[grid.scale()]),
            self.writer.u8s(&format!("{name}.zero_point"), &[], vec![grid.zero_point() as u8]),
        ]
    }

    fn node(&mut self, node: &Node) -> Result<String> {
        let Node { name, instr, inputs, why: _ } = node;
        let x = inputs[0];
        Ok(match instr {
            Instr::Quantize(grid) => {
                let value = self.name(x);
                if self.qdq() {
                    return Ok(self.rounded(name, value, *grid, Activation::NONE));
                }
                let codes = self.quantized(name, value, *grid);
                self.clamped(name, codes, *grid, Activation::NONE)
            }
            Instr::Dequantize => self.float(x, name),
            Instr::Conv { layer, attrs, output, activation } => {
                let attributes = conv_attributes(*attrs, &layer.codes.shape()[2..]);
                self.layer(node, layer, "Conv", attributes, *output, *activation)?
            }
            Instr::Linear { layer, output, activation } => {
                self.layer(node, layer, "Gemm", vec![int("transB", 1)], *output, *activation)?
            }
            Instr::Add { output, activation } => {
                let (a, b) = (self.name(x), self.name(inputs[1]));
                if self.qdq() {
                    let sum = self.writer.node("Add", name, [a, b], vec![]);
                    return Ok(self.rounded(name, sum, *output, *activation));
                }
                let (a_grid, b_grid) = (self.grid_of(node, x)?, self.grid_of(node, inputs[1])?);
                let a_grid = self.grid(&format!("{name}.a"), a_grid);
                let b_grid = self.grid(&format!("{name}.b"), b_grid);
                let y_grid = self.grid(name, *output);
                let inputs = [&[a], &a_grid[..], &[b], &b_grid, &y_grid].concat();
                let codes = self.writer.node_of(MICROSOFT, "QLinearAdd", name, inputs, vec![]);
                self.clamped(name, codes, *output, *activation)
            }
            Instr::AvgPool { window, count_padding, output } => {
                let (op, mut attributes) = match window {
                    Some(window) => ("AveragePool", average_attributes(window, *count_padding)),
                    None => ("GlobalAveragePool", vec![]),
                };
                let value = self.name(x);
                if self.qdq() {
                    let mean = self.writer.node(op, name, [value], attributes);
                    return Ok(self.rounded(name, mean, *output, Activation::NONE));
                }
                attributes.push(int("channels_last", 0));
                let x_grid = self.grid_of(node, x)?;
                let x_grid = self.grid(&format!("{name}.x"), x_grid);
                let y_grid = self.grid(name, *output);
                let inputs = [&[value], &x_grid[..], &y_grid].concat();
                let op = format!("QLinear{op}");
                let codes = self.writer.node_of(MICROSOFT, &op, name, inputs, attributes);
                self.clamped(name, codes, *output, Activation::NONE)
            }
            Instr::MaxPool(window) => {
                self.moved(node, "MaxPool", vec![], window_attributes(window))
            }
            Instr::Clip(activation) => match self.program.value(x).grid() {
                Some(grid) if !self.qdq() => {
                    let codes = self.name(x);
                    self.clamped(name, codes, grid, *activation)
                }
                _ if *activation == Activation::RELU => self.moved(node, "Relu", vec![], vec![]),
                _ => {
                    let Activation { min, max } = *activation;
                    let ends = [("min", min), ("max", max)].map(|(what, end)| {
                        self.writer.floats(&format!("{name}.{what}"), &[], &[end])
                    });
                    self.moved(node, "Clip", ends.to_vec(), vec![])
                }
            },
            Instr::Slice { axis, start, end, step } => {
                let numbers = [("starts", start), ("ends", end), ("axes", axis), ("steps", step)];
                let inputs = numbers.map(|(what, &value)| {
                    self.writer.ints(&format!("{name}.{what}"), &[value as i64])
                });
                self.moved(node, "Slice", inputs.to_vec(), vec![])
            }
            Instr::Pad { axis, before, after } => {
                let rank = self.program.value(x).shape.len() + 1;
                let mut pads = vec![0; 2 * rank];
                (pads[*axis], pads[rank + axis]) = (*before as i64, *after as i64);
                let pads = self.writer.ints(&format!("{name}.pads"), &pads);
                // Zero is the zero-point among codes.
                let value = format!("{name}.value");
                let value = match self.program.value(x).grid() {
                    Some(grid) if !self.qdq() => {
                        let zero = grid.to_unsigned().zero_point() as u8;
                        self.writer.u8s(&value, &[], vec![zero])
                    }
                    _ => self.writer.floats(&value, &[], &[0.0]),
                };
                self.moved(node, "Pad", vec![pads, value], vec![])
            }
            Instr::Flatten => self.moved(node, "Flatten", vec![], vec![int("axis", 1)]),
            Instr::Reshape(shape) => {
                // Zero keeps the batch.
                let sizes = std::iter::once(0).chain(shape.iter().map(|&size| size as i64));
                let sizes = Vec::from_iter(sizes);
                let sizes = self.writer.ints(&format!("{name}.shape"), &sizes);
                self.moved(node, "Reshape", vec![sizes], vec![])
            }
            Instr::Concat { axis, output } => {
                let axis = vec![int("axis", *axis as i64)];
                let values: Vec<String> = inputs.iter().map(|&id| self.name(id)).collect();
                match output {
                    None => {
                        let whole = self.writer.node("Concat", name, values, axis);
                        self.on_grid_of(x, name, whole)
                    }
                    Some(grid) if self.qdq() => {
                        let whole = self.writer.node("Concat", name, values, axis);
                        self.rounded(name, whole, *grid, Activation::NONE)
                    }
                    Some(output) => {
                        let mut operands = self.grid(name, *output).to_vec();
                        for (i, (value, &id)) in values.into_iter().zip(inputs).enumerate() {
                            let grid = self.grid_of(node, id)?;
                            operands.push(value);
                            operands.extend(self.grid(&format!("{name}.{i}"), grid));
                        }
                        let op = "QLinearConcat";
                        let codes = self.writer.node_of(MICROSOFT, op, name, operands, axis);
                        self.clamped(name, codes, *output, Activation::NONE)
                    }
                }
            }
            Instr::Float(op) => {
                let rank = self.program.value(x).shape.len() + 1;
                let inputs = inputs.iter().map(|&id| self.name(id)).collect();
                float_op::write(&mut self.writer, name, op, rank, inputs)
            }
        })
    }

    /// An operator whose output is on the grid of its input, or as float as that.
    fn moved(
        &mut self,
        node: &Node,
        op: &str,
        constants: Vec<String>,
        attributes: Vec<Attribute>,
    ) -> String {
        let inputs = std::iter::once(self.name(node.inputs[0])).chain(constants);
        let result = self.writer.node(op, &node.name, inputs, attributes);
        self.on_grid_of(node.inputs[0], &node.name, result)
    }

    /// What came of values on the grid of `x` by moving them: with QDQ, quantized again.
    fn on_grid_of(&mut self, x: ValueId, name: &str, result: String) -> String {
        match self.program.value(x).grid() {
            Some(grid) if self.qdq() => self.quantized(name, result, grid),
            _ => result,
        }
    }

    /// Floats to codes on a grid (with QDQ, and back).
    fn quantized(&mut self, name: &str, value: String, grid: QParams) -> String {
        let [scale, zero] = self.grid(name, grid);
        let inputs = [value, scale.clone(), zero.clone()];
        let codes = self.writer.node("QuantizeLinear", &format!("{name}.q"), inputs, vec![]);
        if !self.qdq() {
            return codes;
        }
        let inputs = [codes, scale, zero];
        self.writer.node("DequantizeLinear", &format!("{name}.dq"), inputs, vec![])
    }

    /// The floats of QDQ to a grid, clamped to what that, or a fused activation, allows.
    fn rounded(
        &mut self,
        name: &str,
        value: String,
        grid: QParams,
        activation: Activation,
    ) -> String {
        let unsigned = grid.to_unsigned();
        // Only where zero is the lowest code does a Relu before the rounding let runtimes fuse it.
        let fused = activation.min == 0.0 && unsigned.zero_point() == 0;
        let value = match fused {
            true => self.writer.node("Relu", &format!("{name}.relu"), [value], vec![]),
            false => value,
        };
        let result = self.quantized(name, value, grid);
        let (low, high) = bounds(grid, activation);
        if (low, high) == (0, 255) {
            return result;
        }
        // Between grid points, clamping and rounding again are exact.
        let bound = |code: u8| unsigned.dequantize(code.into());
        let min = self.writer.floats(&format!("{name}.min"), &[], &[bound(low)]);
        let max = self.writer.floats(&format!("{name}.max"), &[], &[bound(high)]);
        let name = format!("{name}.clip");
        let clipped = self.writer.node("Clip", &name, [result, min, max], vec![]);
        self.quantized(&name, clipped, grid)
    }

    /// Codes clamped to what a grid, or a fused activation, allows.
    fn clamped(
        &mut self,
        name: &str,
        codes: String,
        grid: QParams,
        activation: Activation,
    ) -> String {
        let (low, high) = bounds(grid, activation);
        if (low, high) == (0, 255) {
            return codes;
        }
        let min = self.writer.u8s(&format!("{name}.min"), &[], vec![low]);
        let max = self.writer.u8s(&format!("{name}.max"), &[], vec![high]);
        self.writer.node("Clip", &format!("{name}.clip"), [codes, min, max], vec![])
    }

    /// A convolution or linear layer.
    fn layer(
        &mut self,
        node: &Node,
        layer: &QuantizedLayer,
        op: &str,
        attributes: Vec<Attribute>,
        output: QParams,
        activation: Activation,
    ) -> Result<String> {
        let (name, id) = (&node.name, node.inputs[0]);
        let x_grid = self.grid_of(node, id)?;
        let mut x = self.name(id);
        if op == "Gemm" && self.program.value(id).shape.len() != 1 {
            // An image of one pixel.
            let flat = format!("{name}.flatten");
            x = self.writer.node("Flatten", &flat, [x], vec![int("axis", 1)]);
            if self.qdq() {
                x = self.quantized(&flat, x, x_grid);
            }
        }
        let shape = layer.codes.shape();
        let [weight, scale, zero] = self.weight(name, layer);
        let bias = self.writer.int32s(&format!("{name}.bias"), &layer.bias);
        if self.qdq() {
            let scales: Vec<f32> = layer.scales.iter().map(|s| x_grid.scale() * s).collect();
            let inputs = [weight, scale, zero];
            let weight_name = format!("{name}.weight.dq");
            let axis = || vec![int("axis", 0)];
            let weight = self.writer.node("DequantizeLinear", &weight_name, inputs, axis());
            let scale = self.writer.floats(&format!("{name}.bias_scale"), &[shape[0]], &scales);
            let zero = self.writer.int32s(&format!("{name}.bias_zero"), &vec![0; shape[0]]);
            let bias_name = format!("{name}.bias.dq");
            let bias =
                self.writer.node("DequantizeLinear", &bias_name, [bias, scale, zero], axis());
            let sum = self.writer.node(op, name, [x, weight, bias], attributes);
            return Ok(self.rounded(name, sum, output, activation));
        }
        let x_grid = self.grid(&format!("{name}.x"), x_grid);
        let y_grid = self.grid(name, output);
        let weights = [weight, scale, zero];
        let codes = if op == "Conv" {
            let inputs = [&[x], &x_grid[..], &weights, &y_grid, &[bias]].concat();
            self.writer.node("QLinearConv", name, inputs, attributes)
        } else {
            let inputs = [&[x], &x_grid[..], &weights, &[bias], &y_grid].concat();
            self.writer.node_of(MICROSOFT, "QGemm", name, inputs, attributes)
        };
        Ok(self.clamped(name, codes, output, activation))
    }

    /// Codes, scales and zero-points of a weight.
    fn weight(&mut self, name: &str, layer: &QuantizedLayer) -> [String; 3] {
        let shape = layer.codes.shape();
        let codes = layer.codes.to_vec();
        let name = |what: &str| format!("{name}.weight{what}");
        let scale = self.writer.floats(&name("_scale"), &[shape[0]], &layer.scales);
        let [weight, zero] = if self.options.unsigned_weights {
            // The same values on a grid that is moved by 128.
            let codes = codes.iter().map(|&q| q.cast_unsigned() ^ 0x80).collect();
            let zeros = vec![128; shape[0]];
            [
                self.writer.u8s(&name(""), shape, codes),
                self.writer.u8s(&name("_zero"), &[shape[0]], zeros),
            ]
        } else {
            let zeros = vec![0; shape[0]];
            [
                self.writer.i8s(&name(""), shape, &codes),
                self.writer.i8s(&name("_zero"), &[shape[0]], &zeros),
            ]
        };
        [weight, scale, zero]
    }
}

/// The lowest and highest code that a result may have.
fn bounds(grid: QParams, activation: Activation) -> (u8, u8) {
    let grid = activation.clamp(grid.to_unsigned());
    (grid.qmin() as u8, grid.qmax() as u8)
}

#[cfg(test)]
mod tests {
    use ottava_quant::FloatOp;
    use ottava_tensor::Tensor;
    use ottava_tensor::conv::ConvAttrs;
    use prost::Message;

    use super::super::super::proto::Model;
    use super::super::program_to_onnx;
    use super::*;

    fn program() -> Program {
        let grid = |zero| QParams::new(0.5, zero, 0..=255).unwrap();
        let layer = |shape: &[usize]| QuantizedLayer {
            codes: Tensor::full(shape, -3),
            scales: vec![0.25; shape[0]],
            bias: vec![7; shape[0]],
        };
        let mut b = Program::builder(&[2, 4, 4]).unwrap();
        let x = b.push("in", Instr::Quantize(grid(9)), &[b.input()]).unwrap();
        let attrs = ConvAttrs::new(1, 1);
        let conv = |zero, activation| Instr::Conv {
            layer: layer(&[2, 2, 3, 3]),
            attrs,
            output: grid(zero),
            activation,
        };
        let y = b.push("conv", conv(0, Activation::RELU), &[x]).unwrap();
        let x = b.push("shifted", conv(5, Activation::RELU), &[y]).unwrap();
        let x = b
            .push("add", Instr::Add { output: grid(0), activation: Activation::NONE }, &[x, y])
            .unwrap();
        let gap = Instr::AvgPool { window: None, count_padding: false, output: grid(0) };
        let x = b.push("gap", gap, &[x]).unwrap();
        let fc = Instr::Linear {
            layer: layer(&[3, 2]),
            output: grid(128),
            activation: Activation::NONE,
        };
        let x = b.push("output", fc, &[x]).unwrap();
        b.finish(x).unwrap()
    }

    fn exported(options: OnnxOptions) -> (Vec<String>, Model) {
        let model = Model::decode(&*program_to_onnx(&program(), &options).unwrap()).unwrap();
        let nodes = &model.graph.as_ref().unwrap().node;
        let ops = nodes.iter().map(|node| node.op_type.clone());
        let quantizers = ["QuantizeLinear", "DequantizeLinear"];
        (ops.filter(|op| !quantizers.contains(&&**op)).collect(), model)
    }

    #[test]
    fn operators_stand_between_quantizers_or_are_integer_ones() {
        let (ops, model) = exported(OnnxOptions::default());
        let float = [
            "Conv",
            "Relu",
            "Conv",
            "Clip",
            "Add",
            "GlobalAveragePool",
            "Flatten",
            "Gemm",
            "Identity",
        ];
        assert_eq!(ops, float);
        assert_eq!(model.opset_import.len(), 1);
        let (ops, model) =
            exported(OnnxOptions { format: OnnxFormat::QOperator, ..Default::default() });
        let integer = [
            "QLinearConv",
            "QLinearConv",
            "Clip",
            "QLinearAdd",
            "QLinearGlobalAveragePool",
            "Flatten",
            "QGemm",
            "Identity",
        ];
        assert_eq!(ops, integer);
        assert_eq!(model.opset_import[1].domain, MICROSOFT);
    }

    #[test]
    fn float_operators_stand_between_integer_ones() {
        let grid = QParams::new(0.5, 9, 0..=255).unwrap();
        let channels = || Tensor::full(&[2], 0.5);
        let mut b = Program::builder(&[2, 4, 4]).unwrap();
        let affine = FloatOp::Affine { scale: channels(), shift: channels() };
        let x = b.push("affine", Instr::Float(affine), &[b.input()]).unwrap();
        let x = b.push("relu", Instr::Clip(Activation::RELU), &[x]).unwrap();
        let x = b.push("q", Instr::Quantize(grid), &[x]).unwrap();
        let x = b.push("pool", Instr::MaxPool(ottava_quant::Window::new(2, 2, 0)), &[x]).unwrap();
        let x = b.push("floats", Instr::Dequantize, &[x]).unwrap();
        let fake = FloatOp::FakeQuant { grids: vec![grid; 2], axis: 1 };
        let x = b.push("fake", Instr::Float(fake), &[x]).unwrap();
        let x = b.push("flat", Instr::Reshape(vec![8]), &[x]).unwrap();
        let dynamic = FloatOp::DynamicLinear {
            codes: Tensor::full(&[3, 8], 5),
            scales: vec![0.1; 3],
            bias: vec![1.0; 3],
        };
        let x = b.push("fc", Instr::Float(dynamic), &[x]).unwrap();
        let x = b.push("softmax", Instr::Float(FloatOp::Softmax), &[x]).unwrap();
        let program = b.finish(x).unwrap();
        for format in [OnnxFormat::Qdq, OnnxFormat::QOperator] {
            let options = OnnxOptions { format, ..Default::default() };
            let model = Model::decode(&*program_to_onnx(&program, &options).unwrap()).unwrap();
            let nodes = model.graph.unwrap().node;
            let ops: Vec<&str> = nodes.iter().map(|node| &*node.op_type).collect();
            let pool: &[&str] = match format {
                OnnxFormat::Qdq => &[
                    "QuantizeLinear",
                    "DequantizeLinear",
                    "MaxPool",
                    "QuantizeLinear",
                    "DequantizeLinear",
                ],
                OnnxFormat::QOperator => &["QuantizeLinear", "MaxPool", "DequantizeLinear"],
            };
            let fake = ["Mul", "Round", "Max", "Min", "Mul", "Reshape"];
            let dynamic =
                ["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul", "Add", "Softmax"];
            let expected = [&["Mul", "Add", "Relu"], pool, &fake, &dynamic, &["Identity"]].concat();
            assert_eq!(ops, expected);
        }
    }

    /// `QuantizeLinear` saturates at the ends of a byte, wherever the grid ends.
    #[test]
    fn grids_of_fewer_codes_are_clipped_to() {
        for (zero, codes) in [(0, 0..=15), (7, 0..=15), (-2, -8..=7)] {
            let grid = QParams::new(0.5, zero, codes).unwrap();
            let mut b = Program::builder(&[7]).unwrap();
            let x = b.push("in", Instr::Quantize(grid), &[b.input()]).unwrap();
            let program = b.finish(x).unwrap();
            let (least, most) = grid.range();
            let unsigned = grid.to_unsigned();
            for format in [OnnxFormat::Qdq, OnnxFormat::QOperator] {
                let options = OnnxOptions { format, ..Default::default() };
                let bytes = program_to_onnx(&program, &options).unwrap();
                let graph = Model::decode(&*bytes).unwrap().graph.unwrap();
                let clip = graph.node.iter().find(|node| node.op_type == "Clip").unwrap();
                let bounds = [1, 2].map(|i| {
                    let bound = graph.initializer.iter().find(|t| t.name == clip.input[i]);
                    bound.unwrap().raw_data.clone()
                });
                let expected = match format {
                    OnnxFormat::Qdq => [least, most].map(|bound| bound.to_le_bytes().to_vec()),
                    OnnxFormat::QOperator => {
                        [unsigned.qmin(), unsigned.qmax()].map(|code| vec![code as u8])
                    }
                };
                assert_eq!(bounds, expected, "{grid:?} {format:?}");

                let again = crate::onnx_program_from_bytes("t", &bytes).unwrap();
                assert_eq!(again.nodes().len(), 1, "the clip is part of the quantizer again");
                let x = [-1e6, least - 1.0, least, 0.0, most, most + 1.0, 1e6];
                let x = Tensor::new(&[1, 7], x).unwrap();
                let y = |program| {
                    let engine = ottava_quant::Engine::new(program).unwrap();
                    engine.run(&x, &mut Default::default()).unwrap().to_vec()
                };
                assert_eq!(y(&program), [least, least, least, 0.0, most, most, most]);
                assert_eq!(y(&again), y(&program), "{grid:?} {format:?}");
            }
        }
    }

    #[test]
    fn unsigned_weights_are_the_same_values_moved() {
        let (_, model) = exported(OnnxOptions { unsigned_weights: true, ..Default::default() });
        let graph = model.graph.unwrap();
        let raw = |name: &str| &graph.initializer.iter().find(|t| t.name == name).unwrap().raw_data;
        assert_eq!((raw("conv.weight")[0], raw("conv.weight_zero")[0]), (125, 128));
    }

    #[test]
    fn names_are_unique() {
        let (_, model) = exported(OnnxOptions::default());
        let graph = model.graph.unwrap();
        let mut names = std::collections::HashSet::new();
        assert!(graph.node.iter().all(|node| names.insert(&node.name)));
        let values = graph.node.iter().flat_map(|node| &node.output);
        let mut names: std::collections::HashSet<&String> =
            graph.initializer.iter().map(|tensor| &tensor.name).collect();
        assert!(values.into_iter().all(|name| names.insert(name)));
    }

    #[test]
    fn versions_that_cannot_be_written_are_refused() {
        let options = OnnxOptions { opset: 12, ..Default::default() };
        assert!(program_to_onnx(&program(), &options).is_err());
    }
}
