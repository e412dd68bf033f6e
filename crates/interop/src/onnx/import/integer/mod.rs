//! From a quantized ONNX file to an integer program.
//!
//! A file says a step in one of two ways: as a float operator between `DequantizeLinear` and
//! `QuantizeLinear` (QDQ), or as an operator on codes (QOperator). Both are read by one rule: each name of
//! the file, of codes or of their floats, stands for an [`Edge`]. The grid of a float operator's result
//! is told nodes later, by the `QuantizeLinear` behind it; until then the operator is [`Pending`], and a
//! ReLU, a clip, or what only moves elements joins it. Rounding to a grid is monotone and keeps zero,
//! and so it does not matter on which side of it these stand; but a bound that is no value of the grid before
//! it waits for the next one ([`Edge::Clipped`]).

mod operators;
mod pending;
mod weight;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use ottava_quant::{Activation, Builder, Instr, Program, QParams, ValueId};

use super::super::attributes::Check;
use super::super::constant::{Constant, Constants};
use super::super::proto::{self, Node, data_type};
use super::budget::Budget;
use super::layers::check_evaluates;
use super::{Defined, Input, Names, decode, input_of, opset, owner};
use crate::{Error, Result};
use pending::{Head, Pending, both};
use weight::Weight;

/// Reads a classifier that is quantized already, to 8 bits, as an integer program.
///
/// Both forms are read, QDQ and QOperator, as ONNX Runtime's `quantize_static` and
/// [`program_to_onnx`](crate::program_to_onnx) write them: `Conv`, `Gemm`, `MatMul`, `Add`, `Concat`, `Relu`, `Clip`,
/// `GlobalAveragePool`, `AveragePool`, `ReduceMean` over an image, and what only moves codes (`MaxPool`,
/// `Flatten`, `Reshape`, `Squeeze`, `Slice`, `Pad`, `Identity`, `Dropout`). Activations are `u8` or
/// `s8`, weights `s8` or `u8` whose codes less zero-point fit `s8`, with one scale or one for each output
/// channel. The file's metadata become the program's.
///
/// The program answers with ONNX Runtime's codes where that does not saturate (see
/// [`program_to_onnx`](crate::program_to_onnx)).
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] for a damaged file, [`Error::Unsupported`] naming the node that is none of
/// the above, or that reads what is not quantized.
///
/// # Source
/// ONNX `QuantizeLinear`, `DequantizeLinear`, `QLinearConv`, `QLinearMatMul`; ONNX Runtime's contrib operators
/// `QGemm`, `QLinearAdd`, `QLinearConcat`, `QLinearAveragePool`, `QLinearGlobalAveragePool`.
pub fn read_onnx_program(path: &Path) -> Result<Program> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, &error))?;
    onnx_program_from_bytes(&path.display().to_string(), &bytes)
}

/// The same from memory; `name` stands for the path in errors.
///
/// # Errors
/// As [`read_onnx_program`].
pub fn onnx_program_from_bytes(name: &str, bytes: &[u8]) -> Result<Program> {
    let model = decode(name, bytes)?;
    let opset = opset(name, &model)?;
    let graph = model.graph.as_ref().ok_or_else(|| Error::format(name, "no graph in it"))?;
    let mut program =
        Importer::run(graph, opset).map_err(|reason| Error::unsupported(name, reason))?;
    let metadata = model.metadata_props.into_iter().map(|entry| (entry.key, entry.value));
    program.metadata_mut().extend(metadata.collect::<BTreeMap<_, _>>());
    Ok(program)
}

/// Whether a file is quantized: one for [`onnx_program_from_bytes`], not for
/// [`onnx_from_bytes`](crate::onnx_from_bytes).
///
/// # Errors
/// [`Error::Format`] and [`Error::Unsupported`] for what is no ONNX file.
pub fn onnx_is_quantized(name: &str, bytes: &[u8]) -> Result<bool> {
    let quantizes = |node: &Node| {
        matches!(&*node.op_type, "QuantizeLinear" | "DequantizeLinear" | "QGemm")
            || node.op_type.starts_with("QLinear")
    };
    Ok(decode(name, bytes)?.graph.is_some_and(|graph| graph.node.iter().any(quantizes)))
}

/// The domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// What a name of the file stands for.
#[derive(Clone, Copy)]
struct Name {
    edge: usize,
    /// `None` for floats; else whether the codes are signed.
    codes: Option<bool>,
}

/// A value of the network.
enum Edge {
    /// The file's input: floats.
    Input,
    /// The floats of an operator whose grid is not known yet.
    Open(Pending),
    /// The same on a grid, not yet in the program: a clip may still join it.
    OnGrid(Pending, QParams),
    /// The floats of another edge, on a grid, clipped to bounds that are not all on it.
    Clipped(usize, Activation),
    /// A value of the program.
    Made(ValueId),
}

/// The program so far.
struct Importer {
    opset: i64,
    constants: Constants,
    defined: Defined,
    /// The size of the batch, where the file fixes it.
    batch: Option<usize>,
    /// Constants that went through `DequantizeLinear`.
    weights: HashMap<String, Weight>,
    values: HashMap<String, Name>,
    /// How often each of the file's names is read.
    uses: HashMap<String, usize>,
    edges: Vec<Edge>,
    /// How often each edge is read, by operators other than quantizers.
    readers: Vec<usize>,
    /// For what nodes make of the constants, whether it comes to be in the program or not.
    layers: Budget,
    /// For the weights in the program, which a layer enters each time it is quantized.
    program: Budget,
    builder: Builder,
    names: Names,
}

impl Importer {
    fn run(graph: &proto::Graph, opset: i64) -> Check<Program> {
        let mut defined = Defined::constants(graph)?;
        let Input { name: input, batch, shape } = input_of(graph, &mut defined)?;
        let [output] = &graph.output[..] else {
            return Err(format!("{} outputs; a classifier has one", graph.output.len()));
        };
        let mut uses: HashMap<String, usize> = HashMap::new();
        for name in graph.node.iter().flat_map(|node| &node.input).chain([&output.name]) {
            *uses.entry(name.clone()).or_default() += 1;
        }
        let mut importer = Self {
            opset,
            constants: Constants::of_graph(&graph.initializer)?,
            defined,
            batch,
            weights: HashMap::new(),
            values: HashMap::new(),
            uses,
            edges: vec![Edge::Input],
            readers: vec![0],
            layers: Budget::default(),
            program: Budget::default(),
            builder: Program::builder(&shape).map_err(|error| error.to_string())?,
            names: Names::default(),
        };
        importer.read(importer.constants.len());
        importer.values.insert(input.to_string(), Name { edge: 0, codes: None });
        for node in &graph.node {
            importer.node(node).map_err(|reason| format!("{}: {reason}", node.label()))?;
        }
        let result = importer.named(&output.name)?;
        let result = importer.emit(result.edge)?;
        importer.builder.finish(result).map_err(|error| error.to_string())
    }

    fn node(&mut self, node: &Node) -> Check<()> {
        node.check_attributes()?;
        let ours = matches!(&*node.domain, "" | "ai.onnx");
        let theirs = node.domain == MICROSOFT
            && (node.op_type.starts_with('Q') || node.op_type == "DequantizeLinear");
        if !ours && !theirs {
            return Err(format!("operators of {:?} are not read", node.domain));
        }
        match &*node.op_type {
            "Constant" => {
                let constant = Constant::of_node(node)?;
                self.read(constant.len());
                self.fixed(node, constant)
            }
            "QuantizeLinear" => self.quantize(node),
            "DequantizeLinear" => self.dequantize(node),
            "Identity" | "Dropout" => {
                check_evaluates(&self.constants, node)?;
                self.moved(node, |_, shape| Ok((vec![], shape.to_vec())))
            }
            "Conv" => self.conv(node),
            "Gemm" => self.gemm(node),
            "MatMul" => self.matmul(node),
            "Add" => self.add(node),
            "Concat" => self.concat(node),
            "Relu" => self.relu(node),
            "Clip" => self.clip(node),
            "GlobalAveragePool" => self.global_average(node, true),
            "AveragePool" => self.average_pool(node),
            "ReduceMean" => self.reduce_mean(node),
            "MaxPool" => self.max_pool(node),
            "Flatten" => self.flatten(node),
            "Reshape" => self.reshape(node),
            "Squeeze" => self.squeeze(node),
            "Slice" => self.slice(node),
            "Pad" => self.pad(node),
            "QLinearConv" => self.qlinear_conv(node),
            "QGemm" => self.qgemm(node),
            "QLinearMatMul" => self.qlinear_matmul(node),
            "QLinearAdd" => self.qlinear_add(node),
            "QLinearConcat" => self.qlinear_concat(node),
            "QLinearGlobalAveragePool" | "QLinearAveragePool" => self.qlinear_average(node),
            "BatchNormalization" => {
                Err("a BatchNormalization that is not folded; run ONNX Runtime's \
                                         quant_pre_process before quantizing"
                    .into())
            }
            _ => Err("this operator is not supported between integers".into()),
        }
    }

    /// So many numbers are in the file.
    fn read(&mut self, numbers: usize) {
        self.layers.read(numbers);
        self.program.read(numbers);
    }

    /// Says what the node's first output stands for.
    fn define(&mut self, node: &Node, edge: usize, codes: Option<bool>) -> Check<()> {
        let name = self.defined.output(node)?;
        self.readers[edge] += self.uses.get(name).copied().unwrap_or(0);
        self.values.insert(name.to_string(), Name { edge, codes });
        Ok(())
    }

    fn define_edge(&mut self, node: &Node, edge: Edge, codes: Option<bool>) -> Check<()> {
        self.edges.push(edge);
        self.readers.push(0);
        self.define(node, self.edges.len() - 1, codes)
    }

    /// The node's output is a constant.
    fn fixed(&mut self, node: &Node, constant: Constant) -> Check<()> {
        let name = self.defined.output(node)?;
        self.constants.insert(name, constant);
        Ok(())
    }

    fn named(&self, name: &str) -> Check<Name> {
        self.values.get(name).copied().ok_or_else(|| {
            match self.constants.contains(name) || self.weights.contains_key(name) {
                true => format!("{name:?} is a constant, where a value was expected"),
                false => {
                    format!("{name:?} is made by no node before; the nodes are unsorted or cyclic")
                }
            }
        })
    }

    fn activation(&self, node: &Node, index: usize) -> Check<Name> {
        self.named(node.input(index).ok_or_else(|| format!("input {index} is missing"))?)
    }

    /// A value that a float operator reads: in the program by now, its floats being codes on a grid.
    fn floats(&mut self, node: &Node, index: usize) -> Check<ValueId> {
        let name = self.activation(node, index)?;
        if name.codes.is_some() {
            return Err(format!("input {index} is codes; a float operator reads them dequantized"));
        }
        self.emit(name.edge)
    }

    /// A value that an operator on codes reads, whose grid the node repeats in its inputs.
    fn codes(&mut self, node: &Node, index: usize) -> Check<ValueId> {
        let name = self.activation(node, index)?;
        let Some(signed) = name.codes else {
            return Err(format!("input {index} is floats, where codes were expected"));
        };
        let (grid, _) = self.grid(node, (index + 1, index + 2), signed)?;
        self.same_grid(name.edge, grid)?;
        self.emit(name.edge)
    }

    fn same_grid(&self, edge: usize, grid: QParams) -> Check<()> {
        match self.grid_of(edge) {
            Some(written) if on_one_grid(written, grid) => Ok(()),
            Some(written) => Err(format!(
                "codes of scale {} and zero-point {} are read with scale {} and zero-point {}",
                written.scale(),
                written.zero_point(),
                grid.scale(),
                grid.zero_point()
            )),
            None => Err("it reads floats, where codes were expected".into()),
        }
    }

    fn grid_of(&self, edge: usize) -> Option<QParams> {
        match &self.edges[edge] {
            Edge::Input | Edge::Open(_) | Edge::Clipped(..) => None,
            Edge::OnGrid(_, grid) => Some(*grid),
            Edge::Made(id) => self.builder.value(*id).grid(),
        }
    }

    /// The shape of a value without the batch.
    fn shape_of(&self, edge: usize) -> &[usize] {
        match &self.edges[edge] {
            Edge::Input => &self.builder.value(self.builder.input()).shape,
            Edge::Open(pending) | Edge::OnGrid(pending, _) => &pending.shape,
            Edge::Clipped(of, _) => self.shape_of(*of),
            Edge::Made(id) => &self.builder.value(*id).shape,
        }
    }

    /// A grid of activations in a node's inputs, with unsigned codes, and whether the file's are signed:
    /// a zero-point tells by its type, and where it is left out, `otherwise` does.
    fn grid(
        &self,
        node: &Node,
        (scale, zero): (usize, usize),
        otherwise: bool,
    ) -> Check<(QParams, bool)> {
        let scale = self.constants.scalar(node, scale, "the scale")?.ok_or("no scale")?;
        let (zero, signed) = match (node.input(zero), self.constants.of(node, zero)) {
            (None, _) => (0, otherwise),
            (_, Some(Constant::Int(zero))) => match (zero.data_type, &zero.numbers[..]) {
                (data_type::UINT8, &[zero]) => (zero, false),
                (data_type::INT8, &[zero]) => (zero, true),
                (kind, _) => {
                    return Err(format!(
                        "a zero-point of element type {kind} and {} elements; activations have one, \
                         u8 or s8",
                        zero.numbers.len()
                    ));
                }
            },
            (Some(_), _) => return Err("the zero-point must be a constant of integers".into()),
        };
        let codes = if signed { -128..=127 } else { 0..=255 };
        let grid = QParams::new(scale, zero as i32, codes).map_err(|error| error.to_string())?;
        Ok((grid.to_unsigned(), signed))
    }

    fn quantize(&mut self, node: &Node) -> Check<()> {
        if let Some(Constant::Float(values)) = self.constants.of(node, 0) {
            self.layers.make(values.len())?;
            let codes = weight::quantize(values, &self.constants, node)?;
            return self.fixed(node, Constant::Int(codes));
        }
        let signed = node.int("output_dtype", 0) == i64::from(data_type::INT8);
        let (grid, signed) = self.grid(node, (1, 2), signed)?;
        let x = self.activation(node, 0)?;
        if x.codes.is_some() {
            return Err("its input is quantized already".into());
        }
        self.readers[x.edge] = self.readers[x.edge].saturating_sub(1);
        let edge = match &self.edges[x.edge] {
            Edge::Input => {
                let (input, shape) = (self.builder.input(), self.shape_of(x.edge).to_vec());
                let pending = Pending::new(owner(node, None), Head::Quantize, vec![input], shape);
                Edge::OnGrid(pending, grid)
            }
            Edge::Open(pending) => Edge::OnGrid(pending.clone(), grid),
            Edge::OnGrid(..) | Edge::Made(_) if self.same_grid(x.edge, grid).is_ok() => {
                return self.define(node, x.edge, Some(signed));
            }
            &Edge::Clipped(of, clamp) => {
                let joins = self.readers[of] <= 1 && self.same_grid(of, grid).is_ok();
                let pending = match &self.edges[of] {
                    Edge::OnGrid(pending, _) if joins => pending.clone(),
                    _ => self.again(node, of)?,
                };
                Edge::OnGrid(pending.clamped(clamp)?, grid)
            }
            Edge::OnGrid(..) | Edge::Made(_) => Edge::OnGrid(self.again(node, x.edge)?, grid),
        };
        self.define_edge(node, edge, Some(signed))
    }

    fn dequantize(&mut self, node: &Node) -> Check<()> {
        let Some(input) = node.input(0) else { return Err("input 0 is missing".into()) };
        if let Some(Constant::Int(codes)) = self.constants.named(input) {
            let grids = (node, 1, node.int("axis", 1));
            let weight = Weight::new(input, codes, &self.constants, grids)?;
            let name = self.defined.output(node)?;
            self.weights.insert(name.to_string(), weight);
            return Ok(());
        }
        let x = self.activation(node, 0)?;
        let Some(signed) = x.codes else { return Err("its input is floats already".into()) };
        let (grid, _) = self.grid(node, (1, 2), signed)?;
        self.same_grid(x.edge, grid)?;
        self.readers[x.edge] = self.readers[x.edge].saturating_sub(1);
        self.define(node, x.edge, None)
    }

    /// A value of the program as the beginning of another operation.
    fn again(&mut self, node: &Node, edge: usize) -> Check<Pending> {
        let id = self.emit(edge)?;
        let shape = self.builder.value(id).shape.clone();
        Ok(Pending::new(owner(node, None), Head::Same, vec![id], shape))
    }

    /// Values clamped: joined to the operator that makes them, if nobody else reads those.
    fn clamped(&mut self, node: &Node, clamp: Activation) -> Check<()> {
        let x = self.activation(node, 0)?;
        let alone = self.readers[x.edge] <= 1;
        let between =
            x.codes.is_none() && self.grid_of(x.edge).is_some_and(|grid| is_between(clamp, grid));
        let edge = match &self.edges[x.edge] {
            Edge::Input => return Err("the input must go through QuantizeLinear first".into()),
            Edge::Open(pending) => Edge::Open(pending.clone().clamped(clamp)?),
            Edge::OnGrid(..) | Edge::Made(_) if between => {
                Edge::Clipped(x.edge, both(Activation::NONE, clamp)?)
            }
            &Edge::Clipped(of, before) => Edge::Clipped(of, both(before, clamp)?),
            Edge::OnGrid(pending, grid) if alone => {
                Edge::OnGrid(pending.clone().clamped(clamp)?, *grid)
            }
            Edge::OnGrid(..) | Edge::Made(_) => {
                let grid = self.grid_of(x.edge).ok_or("no grid")?;
                Edge::OnGrid(self.again(node, x.edge)?.clamped(clamp)?, grid)
            }
        };
        self.define_edge(node, edge, x.codes)
    }

    /// What only moves elements; `moves` says the instructions for a shape, and the shape behind them.
    fn moved(
        &mut self,
        node: &Node,
        moves: impl FnOnce(&Constants, &[usize]) -> Check<(Vec<Instr>, Vec<usize>)>,
    ) -> Check<()> {
        let x = self.activation(node, 0)?;
        let (moves, shape) = moves(&self.constants, self.shape_of(x.edge))?;
        if moves.is_empty() {
            self.readers[x.edge] = self.readers[x.edge].saturating_sub(1);
            return self.define(node, x.edge, x.codes);
        }
        if let Edge::Open(pending) = &self.edges[x.edge] {
            let pending = pending.clone().moved(moves, shape)?;
            return self.define_edge(node, Edge::Open(pending), x.codes);
        }
        let (of, clipped) = match self.edges[x.edge] {
            Edge::Clipped(of, clamp) => (of, Some(clamp)),
            _ => (x.edge, None),
        };
        let mut id = self.emit(of)?;
        for instr in moves {
            id = self.push(&owner(node, None), instr, &[id])?;
        }
        let Some(clamp) = clipped else {
            return self.define_edge(node, Edge::Made(id), x.codes);
        };
        self.edges.push(Edge::Made(id));
        self.readers.push(1);
        self.define_edge(node, Edge::Clipped(self.edges.len() - 1, clamp), x.codes)
    }

    /// The value of the program that an edge is.
    fn emit(&mut self, edge: usize) -> Check<ValueId> {
        let (pending, grid) = match &self.edges[edge] {
            Edge::Made(id) => return Ok(*id),
            Edge::Input => return Err("the input must go through QuantizeLinear first".into()),
            Edge::Open(pending) => {
                return Err(format!(
                    "the result of {:?} is not quantized: a QuantizeLinear must stand behind it",
                    pending.name
                ));
            }
            Edge::Clipped(_, Activation { min, max }) => {
                return Err(format!(
                    "values clipped to {min}..{max}, which is between two codes of their grid: a \
                     QuantizeLinear must stand behind the Clip"
                ));
            }
            Edge::OnGrid(pending, grid) => (pending.clone(), *grid),
        };
        let id = pending.emit(grid, self)?;
        self.edges[edge] = Edge::Made(id);
        Ok(id)
    }

    fn push(&mut self, name: &str, instr: Instr, inputs: &[ValueId]) -> Check<ValueId> {
        if let Instr::Conv { layer, .. } | Instr::Linear { layer, .. } = &instr {
            self.program.make(layer.codes.len())?;
        }
        let name = self.names.unique(name);
        self.builder.push(name, instr, inputs).map_err(|error| error.to_string())
    }
}

/// Whether a bound is within the grid, and none of its values.
fn is_between(clamp: Activation, grid: QParams) -> bool {
    let (low, high) = grid.range();
    [clamp.min, clamp.max]
        .into_iter()
        .any(|bound| low < bound && bound < high && grid.dequantize(grid.quantize(bound)) != bound)
}

/// Whether codes of both mean the same values.
fn on_one_grid(a: QParams, b: QParams) -> bool {
    a.scale() == b.scale() && a.zero_point() == b.zero_point()
}
