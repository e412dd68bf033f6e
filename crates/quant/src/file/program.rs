//! A program in a container: the graph as compact JSON in the metadata, the numbers of its layers as
//! tensors.
//!
//! `{"input":[c,h,w],"nodes":[{"name":…,"op":…,…}],"output":value}`. A node's fields are those of its
//! instruction; one that has its usual value is left out: `in` when it is the value before, `stride`,
//! `pad`, `dilation`, `groups` when they change nothing, the codes of a `grid` when they are 0..=255.
//! A layer called `L` has the tensors `L.weight` (`I8`; or, if all codes fit four bits, two a byte in
//! `U8`, the first in the low bits, with the shape in the field `int4`), `L.scale` (`F32`) and
//! `L.bias` (`I32`).

use std::path::Path;
use std::str::FromStr;

use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

use super::json::{Reader, quote};
use super::{Container, float};
use crate::instr::contiguous;
use crate::{
    Activation, Error, FloatOp, Instr, Node, Program, QParams, QuantizedLayer, Result, ValueId,
    Window,
};

/// The metadata entry that holds the graph.
const KEY: &str = "program";

/// Metadata entries that are a file's own, and no program's.
const RESERVED: [&str; 3] = [KEY, "format", "version"];

/// Nodes a program in a file may have; bounds the memory that reading a hostile one takes.
const MAX_NODES: usize = 1 << 16;

impl Program {
    /// The program as a container: what [`save`](Self::save) writes.
    ///
    /// # Errors
    /// [`Error::Entry`] if the program's metadata use the name `program`, `format` or `version`.
    pub fn to_container(&self) -> Result<Container> {
        let mut container = Container::default();
        if let Some(name) = RESERVED.iter().find(|name| self.metadata().contains_key(**name)) {
            let reason = "this metadata name is the file's own".into();
            return Err(Error::Entry { name: (*name).into(), reason });
        }
        container.metadata_mut().clone_from(self.metadata());
        let mut graph = String::from("{\"input\":");
        put_list(&mut graph, self.input_shape());
        graph.push_str(",\"nodes\":[");
        for (index, node) in self.nodes().iter().enumerate() {
            graph.push_str(if index == 0 { "{" } else { ",{" });
            put_node(&mut graph, index, node);
            if let Some(layer) = node.instr.layer() {
                put_layer(&mut container, &mut graph, &node.name, layer)?;
            }
            if let Instr::Float(op) = &node.instr {
                float::put(&mut container, &node.name, op)?;
            }
            graph.push('}');
        }
        graph.push_str(&format!("],\"output\":{}}}", self.output().0));
        container.metadata_mut().insert(KEY.into(), graph);
        Ok(container)
    }

    /// The program in a container, every node checked as [`Builder::push`](crate::Builder::push) does.
    ///
    /// # Errors
    /// [`Error::Entry`] if there is none, or a tensor is missing or of another form;
    /// [`Error::File`] if the graph is no such JSON; [`Error::Node`] if a node does not fit.
    pub fn from_container(container: &Container) -> Result<Self> {
        let graph = container.metadata().get(KEY).ok_or_else(|| Error::Entry {
            name: KEY.into(),
            reason: "the file holds no integer program (a float model or a checkpoint?)".into(),
        })?;
        let graph = Graph::read(graph)?;
        let mut builder = Program::builder(&graph.input)?;
        for (index, mut fields) in graph.nodes.into_iter().enumerate() {
            let name = std::mem::take(&mut fields.name);
            let inputs = fields.inputs.take().unwrap_or_else(|| vec![index]);
            let inputs: Vec<ValueId> = inputs.into_iter().map(ValueId).collect();
            let why = std::mem::take(&mut fields.why);
            let instr = fields.instr(&name, container)?;
            let value = builder.push(name, instr, &inputs)?;
            builder.explain(value, why);
        }
        let mut program = builder.finish(ValueId(graph.output))?;
        program.metadata_mut().clone_from(container.metadata());
        RESERVED.iter().for_each(|name| drop(program.metadata_mut().remove(*name)));
        Ok(program)
    }

    /// Writes the program to a file, all of it or nothing.
    ///
    /// # Errors
    /// [`Error::Io`]; as [`to_container`](Self::to_container).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.to_container()?.save(path)
    }

    /// Reads a program from a file.
    ///
    /// # Errors
    /// As [`Container::load`] and [`from_container`](Self::from_container).
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_container(&Container::load(path)?)
    }
}

/// `"key":value` behind a comma.
fn put(out: &mut String, key: &str, value: impl std::fmt::Display) {
    out.push_str(&format!(",\"{key}\":{value}"));
}

fn put_list(out: &mut String, numbers: &[usize]) {
    let words: Vec<String> = numbers.iter().map(usize::to_string).collect();
    out.push_str(&format!("[{}]", words.join(",")));
}

/// One number if all are equal, nothing if that is the usual one, else a list.
fn put_sizes(out: &mut String, key: &str, sizes: &[usize], usual: usize) {
    let first = sizes[0];
    if sizes.iter().any(|&size| size != first) {
        put(out, key, "");
        put_list(out, sizes);
    } else if first != usual {
        put(out, key, first);
    }
}

fn put_flag(out: &mut String, key: &str, flag: bool) {
    if flag {
        put(out, key, true);
    }
}

/// ReLU by its name, of other intervals the ends that they have.
fn put_activation(out: &mut String, activation: Activation) {
    if activation == Activation::RELU {
        return put_flag(out, "relu", true);
    }
    for (key, end) in [("min", activation.min), ("max", activation.max)] {
        if end.is_finite() {
            put(out, key, format_args!("{end:?}"));
        }
    }
}

/// `[scale, zero_point]` or `[scale, zero_point, qmin, qmax]`; the scale as the shortest decimal that
/// reads back as the same `f32`.
fn put_grid(out: &mut String, grid: QParams) {
    let (scale, zero_point) = (grid.scale(), grid.zero_point());
    match (grid.qmin(), grid.qmax()) {
        (0, 255) => put(out, "grid", format_args!("[{scale:?},{zero_point}]")),
        (low, high) => put(out, "grid", format_args!("[{scale:?},{zero_point},{low},{high}]")),
    }
}

fn put_window(out: &mut String, window: &Window) {
    // A kernel of 0 does not exist, so it is always written.
    put_sizes(out, "kernel", &window.kernel, 0);
    put_sizes(out, "stride", &window.stride, 1);
    put_sizes(out, "pad", &window.padding, 0);
}

fn put_node(out: &mut String, index: usize, node: &Node) {
    out.push_str("\"name\":");
    quote(out, &node.name);
    put(out, "op", format_args!("\"{}\"", node.instr.op()));
    if *node.inputs != [ValueId(index)] {
        put(out, "in", "");
        put_list(out, &Vec::from_iter(node.inputs.iter().map(|id| id.0)));
    }
    if !node.why.is_empty() {
        put(out, "why", "");
        quote(out, &node.why);
    }
    match &node.instr {
        Instr::Quantize(grid) => put_grid(out, *grid),
        Instr::Conv { attrs, output, activation, .. } => {
            put_attrs(out, attrs);
            put_grid(out, *output);
            put_activation(out, *activation);
        }
        Instr::Linear { output, activation, .. } | Instr::Add { output, activation } => {
            put_grid(out, *output);
            put_activation(out, *activation);
        }
        Instr::MaxPool(window) => put_window(out, window),
        Instr::AvgPool { window, count_padding, output } => {
            if let Some(window) = window {
                put_window(out, window);
            }
            put_flag(out, "count_padding", *count_padding);
            put_grid(out, *output);
        }
        Instr::Slice { axis, start, end, step } => {
            put(out, "axis", axis);
            put(out, "range", format_args!("[{start},{end},{step}]"));
        }
        Instr::Pad { axis, before, after } => {
            put(out, "axis", axis);
            put(out, "by", format_args!("[{before},{after}]"));
        }
        Instr::Reshape(shape) => {
            put(out, "shape", "");
            put_list(out, shape);
        }
        Instr::Concat { axis, output } => {
            put(out, "axis", axis);
            if let Some(grid) = output {
                put_grid(out, *grid);
            }
        }
        Instr::Float(op) => put_float(out, op),
        Instr::Clip(activation) if *activation != Activation::RELU => {
            put_activation(out, *activation);
        }
        Instr::Dequantize | Instr::Clip(_) | Instr::Flatten => {}
    }
}

/// The attributes of a float operator; its constants are tensors.
fn put_float(out: &mut String, op: &FloatOp) {
    match op {
        FloatOp::Conv { attrs, .. } => put_attrs(out, attrs),
        FloatOp::AvgPool { window, count_padding } => {
            if let Some(window) = window {
                put_window(out, window);
            }
            put_flag(out, "count_padding", *count_padding);
        }
        FloatOp::FakeQuant { grids, axis } => {
            put(out, "axis", axis);
            if let Some(grid) = grids.first() {
                put(out, "codes", format_args!("[{},{}]", grid.qmin(), grid.qmax()));
            }
        }
        FloatOp::Linear { .. }
        | FloatOp::MatMul(_)
        | FloatOp::Affine { .. }
        | FloatOp::Add(_)
        | FloatOp::Mul(_)
        | FloatOp::Softmax
        | FloatOp::LogSoftmax
        | FloatOp::DynamicLinear { .. } => {}
    }
}

fn put_attrs(out: &mut String, attrs: &ConvAttrs) {
    put_sizes(out, "stride", &attrs.stride, 1);
    put_sizes(out, "pad", &attrs.padding, 0);
    put_sizes(out, "dilation", &attrs.dilation, 1);
    put_sizes(out, "groups", &[attrs.groups], 1);
}

fn put_layer(
    container: &mut Container,
    graph: &mut String,
    name: &str,
    layer: &QuantizedLayer,
) -> Result<()> {
    let codes = contiguous(&layer.codes);
    let weight = format!("{name}.weight");
    if layer.fits_four_bits() {
        let bytes: Vec<u8> = codes.chunks(2).map(pack_nibbles).collect();
        container.put(weight, &Tensor::new(&[bytes.len()], bytes)?)?;
        put(graph, "int4", "");
        put_list(graph, layer.codes.shape());
    } else {
        container.put(weight, &layer.codes)?;
    }
    container.put(format!("{name}.scale"), &Tensor::new(&[layer.scales.len()], &layer.scales)?)?;
    container.put(format!("{name}.bias"), &Tensor::new(&[layer.bias.len()], &layer.bias)?)
}

/// One or two codes in a byte, the first in the low bits.
fn pack_nibbles(codes: &[i8]) -> u8 {
    let high = codes.get(1).copied().unwrap_or(0);
    (codes[0] & 15) as u8 | (high as u8) << 4
}

fn unpack_nibbles(byte: u8) -> [i8; 2] {
    [(byte << 4) as i8 >> 4, byte as i8 >> 4]
}

/// The graph as read, not yet checked.
struct Graph {
    input: Vec<usize>,
    nodes: Vec<Fields>,
    output: usize,
}

/// The fields of a node, whatever its operation.
#[derive(Default)]
struct Fields {
    name: String,
    op: String,
    inputs: Option<Vec<usize>>,
    grid: Option<QParams>,
    kernel: Option<[usize; 2]>,
    stride: Option<[usize; 2]>,
    pad: Option<[usize; 4]>,
    dilation: Option<[usize; 2]>,
    groups: Option<usize>,
    relu: bool,
    min: Option<f32>,
    max: Option<f32>,
    count_padding: bool,
    axis: Option<usize>,
    range: Option<[usize; 3]>,
    by: Option<[usize; 2]>,
    int4: Option<Vec<usize>>,
    shape: Option<Vec<usize>>,
    codes: Option<[i32; 2]>,
    why: String,
    /// The names of those that only some operations have.
    given: Vec<String>,
}

/// The fields that an operation may have, besides `name`, `op`, `in` and `why`; `None` for one that is
/// unknown.
fn fields_of(op: &str) -> Option<&'static [&'static str]> {
    Some(match op {
        "quantize" => &["grid"],
        "conv" => &["int4", "stride", "pad", "dilation", "groups", "grid", "relu", "min", "max"],
        "linear" => &["int4", "grid", "relu", "min", "max"],
        "add" => &["grid", "relu", "min", "max"],
        "max_pool" => &["kernel", "stride", "pad"],
        "avg_pool" => &["kernel", "stride", "pad", "count_padding", "grid"],
        "clip" => &["relu", "min", "max"],
        "slice" => &["axis", "range"],
        "pad" => &["axis", "by"],
        "reshape" => &["shape"],
        "concat" => &["axis", "grid"],
        "float_conv" => &["stride", "pad", "dilation", "groups"],
        "float_avg_pool" => &["kernel", "stride", "pad", "count_padding"],
        "fake_quant" => &["axis", "codes"],
        "dequantize" | "relu" | "flatten" | "float_linear" | "float_matmul" | "float_affine"
        | "float_add" | "float_mul" | "softmax" | "log_softmax" | "dynamic_linear" => &[],
        _ => return None,
    })
}

impl Graph {
    fn read(text: &str) -> Result<Self> {
        let mut graph = Self { input: vec![], nodes: vec![], output: 0 };
        let mut reader = Reader::new("program", text);
        reader.object(|reader, key| {
            match key {
                "input" => graph.input = list(reader)?,
                "output" => graph.output = reader.number()?,
                "nodes" => {
                    return reader.array(|reader| {
                        if graph.nodes.len() == MAX_NODES {
                            return Err(reader.error(format!("more than {MAX_NODES} nodes")));
                        }
                        graph.nodes.push(Fields::read(reader)?);
                        Ok(())
                    });
                }
                _ => return Err(unknown(reader, key)),
            }
            Ok(())
        })?;
        reader.end()?;
        Ok(graph)
    }
}

impl Fields {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let mut fields = Self::default();
        reader.object(|reader, key| {
            if !matches!(key, "name" | "op" | "in" | "why") {
                fields.given.push(key.to_owned());
            }
            match key {
                "name" => fields.name = reader.string()?.into(),
                "op" => fields.op = reader.string()?.into(),
                "in" => {
                    let inputs = fields.inputs.insert(vec![]);
                    reader.array(|reader| {
                        inputs.push(reader.number()?);
                        Ok(())
                    })?;
                }
                "grid" => fields.grid = Some(grid(reader)?),
                "kernel" => fields.kernel = Some(sizes(reader)?),
                "stride" => fields.stride = Some(sizes(reader)?),
                "pad" => fields.pad = Some(sizes(reader)?),
                "dilation" => fields.dilation = Some(sizes(reader)?),
                "groups" => fields.groups = Some(reader.number()?),
                "relu" => fields.relu = reader.boolean()?,
                "min" => fields.min = Some(reader.number()?),
                "max" => fields.max = Some(reader.number()?),
                "count_padding" => fields.count_padding = reader.boolean()?,
                "axis" => fields.axis = Some(reader.number()?),
                "range" => fields.range = Some(exactly(reader)?),
                "by" => fields.by = Some(exactly(reader)?),
                "int4" => fields.int4 = Some(list(reader)?),
                "shape" => fields.shape = Some(list(reader)?),
                "codes" => fields.codes = Some(exactly(reader)?),
                "why" => fields.why = reader.string()?.into(),
                _ => return Err(unknown(reader, key)),
            }
            Ok(())
        })?;
        Ok(fields)
    }

    /// The instruction called `name`, its numbers taken from the container.
    fn instr(self, name: &str, container: &Container) -> Result<Instr> {
        let refuse = |reason: String| Error::Entry { name: name.into(), reason };
        let needs = |field: &str| refuse(format!("a node {:?} needs the field {field:?}", self.op));
        let known = fields_of(&self.op);
        let alien = |field: &&String| known.is_some_and(|known| !known.contains(&field.as_str()));
        if let Some(field) = self.given.iter().find(alien) {
            return Err(refuse(format!("a node {:?} has no field {field:?}", self.op)));
        }
        let grid = || self.grid.ok_or_else(|| needs("grid"));
        let axis = || self.axis.ok_or_else(|| needs("axis"));
        let window = self.kernel.map(|kernel| Window {
            kernel,
            stride: self.stride.unwrap_or([1; 2]),
            padding: self.pad.unwrap_or([0; 4]),
        });
        let layer = || get_layer(container, name, self.int4.as_deref());
        let usual = if self.relu { Activation::RELU } else { Activation::NONE };
        let activation =
            Activation { min: self.min.unwrap_or(usual.min), max: self.max.unwrap_or(usual.max) };
        let attrs = ConvAttrs {
            stride: self.stride.unwrap_or([1; 2]),
            padding: self.pad.unwrap_or([0; 4]),
            dilation: self.dilation.unwrap_or([1; 2]),
            groups: self.groups.unwrap_or(1),
        };
        Ok(match self.op.as_str() {
            "quantize" => Instr::Quantize(grid()?),
            "dequantize" => Instr::Dequantize,
            "conv" => Instr::Conv { layer: layer()?, attrs, output: grid()?, activation },
            "linear" => Instr::Linear { layer: layer()?, output: grid()?, activation },
            "add" => Instr::Add { output: grid()?, activation },
            "max_pool" => Instr::MaxPool(window.ok_or_else(|| needs("kernel"))?),
            "avg_pool" => {
                Instr::AvgPool { window, count_padding: self.count_padding, output: grid()? }
            }
            "relu" => Instr::Clip(Activation::RELU),
            "clip" => Instr::Clip(activation),
            "slice" => {
                let [start, end, step] = self.range.ok_or_else(|| needs("range"))?;
                Instr::Slice { axis: axis()?, start, end, step }
            }
            "pad" => {
                let [before, after] = self.by.ok_or_else(|| needs("by"))?;
                Instr::Pad { axis: axis()?, before, after }
            }
            "flatten" => Instr::Flatten,
            "reshape" => Instr::Reshape(self.shape.clone().ok_or_else(|| needs("shape"))?),
            "concat" => Instr::Concat { axis: axis()?, output: self.grid },
            op => {
                let attributes = float::Attributes {
                    attrs,
                    window,
                    count_padding: self.count_padding,
                    axis: self.axis.unwrap_or(0),
                    codes: self.codes.unwrap_or([0, 255]),
                };
                match float::get(container, name, op, &attributes)? {
                    Some(op) => Instr::Float(op),
                    None => {
                        let reason = format!("this build does not know the operation {op:?}");
                        return Err(refuse(reason));
                    }
                }
            }
        })
    }
}

fn get_layer(container: &Container, name: &str, int4: Option<&[usize]>) -> Result<QuantizedLayer> {
    let weight = format!("{name}.weight");
    let codes = match int4 {
        None => container.get(&weight)?,
        Some(shape) => {
            let bytes = container.get::<u8>(&weight)?.to_vec();
            let count = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
            let Some(count) = count.filter(|count| count.div_ceil(2) == bytes.len()) else {
                let reason = format!("{} bytes do not hold int4 codes {shape:?}", bytes.len());
                return Err(Error::Entry { name: weight, reason });
            };
            let mut codes: Vec<i8> = bytes.into_iter().flat_map(unpack_nibbles).collect();
            codes.truncate(count);
            Tensor::new(shape, codes)?
        }
    };
    Ok(QuantizedLayer {
        codes,
        scales: container.get(&format!("{name}.scale"))?.to_vec(),
        bias: container.get(&format!("{name}.bias"))?.to_vec(),
    })
}

fn unknown(reader: &Reader<'_>, key: &str) -> Error {
    reader.error(format!("the field {key:?} is unknown; was the file made by a newer version?"))
}

/// A short list of sizes.
fn list(reader: &mut Reader<'_>) -> Result<Vec<usize>> {
    let (numbers, count) = reader.numbers::<usize, 8>()?;
    Ok(numbers[..count].to_vec())
}

/// Exactly `N` numbers.
fn exactly<T: Default + Copy + FromStr, const N: usize>(reader: &mut Reader<'_>) -> Result<[T; N]> {
    match reader.numbers::<T, N>()? {
        (numbers, count) if count == N => Ok(numbers),
        (_, count) => Err(reader.error(format!("{count} numbers where {N} are needed"))),
    }
}

/// `N` numbers, or one for all.
fn sizes<const N: usize>(reader: &mut Reader<'_>) -> Result<[usize; N]> {
    if reader.at_array() { exactly(reader) } else { Ok([reader.number()?; N]) }
}

/// `[scale, zero_point]`, the codes being 0..=255, or `[scale, zero_point, qmin, qmax]`.
fn grid(reader: &mut Reader<'_>) -> Result<QParams> {
    // The integers are read as f64, which holds each exactly; what is no integer is refused.
    let ([scale, integers @ ..], count) = reader.numbers::<Number, 4>()?;
    let integer = |i: usize| {
        let x: Number = integers[i];
        (x.double as i32 as f64 == x.double)
            .then_some(x.double as i32)
            .ok_or_else(|| reader.error(format!("{} is no code", x.double)))
    };
    let codes = match count {
        2 => 0..=255,
        4 => integer(1)?..=integer(2)?,
        _ => return Err(reader.error(format!("{count} numbers where a grid has 2 or 4"))),
    };
    let grid = QParams::new(scale.single, integer(0)?, codes);
    grid.map_err(|error| reader.error(error.to_string()))
}

/// A decimal as either float: reading the `f32` through an `f64` would round twice.
#[derive(Clone, Copy, Default)]
struct Number {
    single: f32,
    double: f64,
}

impl FromStr for Number {
    type Err = std::num::ParseFloatError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(Self { single: text.parse()?, double: text.parse()? })
    }
}
