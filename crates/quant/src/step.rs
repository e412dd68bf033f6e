//! A node made ready to run: its numbers computed, its weights packed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use ottava_tensor::conv::int8::{AddCodes, Algorithm, Int8Conv, Output, Requantize};
use ottava_tensor::conv::{ConvAttrs, ConvGeometry, PoolGeometry};
use ottava_tensor::pool::int8::{self, Average};
use ottava_tensor::{Level, Tensor, pool};

use crate::codes;
use crate::float::{FloatConv, FloatKernel};
use crate::instr::{Elements, ValueType, contiguous};
use crate::kernels::{self, Axis, Images};
use crate::plan::{ALIGN, Plan, Sharing};
use crate::workspace::aligned;
use crate::{
    DynamicLinear, Error, FloatOp, Instr, Options, Program, QParams, QuantizedLayer, Result,
    ValueId, Window, add_codes, average, requantize_codes,
};

/// What a step does, to which values.
pub(crate) struct Step {
    /// The program's node; of a layer and the addition behind it, the layer's. `None` for the step
    /// that puts the program's input in its place.
    pub node: Option<usize>,
    kernel: Kernel,
    pub inputs: Vec<usize>,
    pub output: usize,
}

/// Geometries are for one image; a run puts its batch in.
enum Kernel {
    Input([usize; 3]),
    Quantize([usize; 3], QParams),
    Dequantize(QParams),
    Conv(Box<Conv>),
    Add(AddCodes),
    MaxPool(PoolGeometry),
    AvgPool(PoolGeometry, Average),
    Clip {
        low: u8,
        high: u8,
    },
    Slice {
        axis: Axis,
        start: usize,
        step: usize,
        size: usize,
    },
    Pad {
        axis: Axis,
        before: usize,
        after: usize,
        zero_point: u8,
    },
    Reshape {
        from: [usize; 3],
        to: [usize; 3],
        elements: Elements,
    },
    /// Of each input the bytes that are one behind another, and their new codes.
    Concat(Vec<(usize, Option<Arc<[u8; 256]>>)>),
    View,
    /// A convolution in floats; what is added to its results is a second input.
    FloatConv {
        conv: Box<FloatConv>,
        add: bool,
        relu: bool,
    },
    /// A computation on tensors, given the shape of each input; its memory is its own.
    Float(FloatKernel, Vec<Vec<usize>>),
}

struct Conv {
    packed: Int8Conv,
    geometry: ConvGeometry,
    zero_point: u8,
    requantize: Requantize,
    /// An addition done on the convolution's results before they are written.
    add: Option<AddCodes>,
}

impl Step {
    /// The step that puts the program's input in its place, for a program that computes on it.
    pub(crate) fn input(program: &Program) -> Self {
        let kernel = Kernel::Input(program.value(ValueId::INPUT).image());
        Self { node: None, kernel, inputs: vec![], output: ValueId::INPUT.0 }
    }

    /// The step of the node at `index`.
    pub(crate) fn new(program: &Program, index: usize, options: &Options) -> Result<Self> {
        let node = &program.nodes()[index];
        let x = program.value(node.inputs[0]);
        let refuse = |error: ottava_tensor::Error| Error::Node {
            node: node.name.clone(),
            op: node.instr.op(),
            reason: error.to_string(),
        };
        let conv =
            |layer: &QuantizedLayer, attrs: ConvAttrs, output, activation| -> Result<Kernel> {
                // A linear layer is a convolution over images of one pixel.
                let shape = match *layer.codes.shape() {
                    [o, c, kh, kw] => [o, c, kh, kw],
                    _ => [layer.scales.len(), layer.codes.len() / layer.scales.len(), 1, 1],
                };
                let [c, h, w] = x.image();
                let codes = contiguous(&layer.codes);
                // Packed for products, a group of one channel takes up to a thousand times its weights.
                let algorithm = match options.algorithm {
                    Algorithm::Direct if attrs.is_depthwise(shape) => Algorithm::Depthwise,
                    algorithm => algorithm,
                };
                Ok(Kernel::Conv(Box::new(Conv {
                    packed: Int8Conv::new(options.level, &codes, shape, attrs, algorithm)
                        .map_err(refuse)?,
                    geometry: ConvGeometry::new([1, c, h, w], shape, attrs).map_err(refuse)?,
                    zero_point: zero_point(x),
                    requantize: layer.requantize(grid(x).scale(), output, activation),
                    add: None,
                })))
            };
        let windows = |window: Window| window.geometry(x.image()).map_err(refuse);
        let float = |kernel: FloatKernel| {
            let shapes = node.inputs.iter().map(|&id| program.value(id).shape.clone());
            Kernel::Float(kernel, shapes.collect())
        };
        let of_floats = x.elements == Elements::Float;
        let kernel = match &node.instr {
            Instr::Quantize(grid) => Kernel::Quantize(x.image(), grid.to_unsigned()),
            Instr::Dequantize => Kernel::Dequantize(grid(x)),
            Instr::Conv { layer, attrs, output, activation } => {
                conv(layer, *attrs, *output, *activation)?
            }
            Instr::Linear { layer, output, activation } => {
                conv(layer, ConvAttrs::default(), *output, *activation)?
            }
            Instr::Add { output, activation } => {
                let b = program.value(node.inputs[1]);
                Kernel::Add(add_codes(grid(x), grid(b), *output, *activation))
            }
            Instr::MaxPool(window) if of_floats => {
                let geometry = windows(*window)?;
                float(Box::new(move |x| {
                    pool::max_pool(&x[0], &PoolGeometry { batch: x[0].shape()[0], ..geometry }).0
                }))
            }
            Instr::MaxPool(window) => Kernel::MaxPool(windows(*window)?),
            Instr::AvgPool { window, count_padding, output } => {
                let geometry = windows(window.unwrap_or_else(|| Window::whole(x)))?;
                Kernel::AvgPool(geometry, average(grid(x), *output, *count_padding))
            }
            &Instr::Clip(activation) if of_floats => {
                float(Box::new(move |x| activation.map(&x[0])))
            }
            Instr::Clip(activation) => {
                let grid = activation.clamp(grid(x));
                Kernel::Clip { low: grid.qmin() as u8, high: grid.qmax() as u8 }
            }
            Instr::Slice { axis, start, end, step } => Kernel::Slice {
                axis: Axis::new(x, *axis),
                start: *start,
                step: *step,
                size: (end - start).div_ceil(*step),
            },
            Instr::Pad { axis, before, after } => Kernel::Pad {
                axis: Axis::new(x, *axis),
                before: *before,
                after: *after,
                // Every byte of a float's zero is zero.
                zero_point: if of_floats { 0 } else { zero_point(x) },
            },
            Instr::Flatten | Instr::Reshape(_) => {
                let (from, to) = (x.image(), program.value(ValueId::of_node(index)).image());
                match (from, to) {
                    // Channels-last and logical order agree.
                    ([1, _, _] | [_, 1, 1], [1, _, _] | [_, 1, 1]) => Kernel::View,
                    _ => Kernel::Reshape { from, to, elements: x.elements },
                }
            }
            Instr::Concat { axis, output } => {
                // A value that is an input many times has one table.
                let mut tables = BTreeMap::new();
                let output = output.map(QParams::to_unsigned);
                let part = |id: &ValueId| {
                    let x = program.value(*id);
                    let other = output.filter(|output| x.grid() != Some(*output));
                    let table = other.map(|output| {
                        let new = || Arc::new(requantize_codes(grid(x), output));
                        tables.entry(id.0).or_insert_with(new).clone()
                    });
                    (Axis::new(x, *axis).bytes(), table)
                };
                Kernel::Concat(node.inputs.iter().map(part).collect())
            }
            Instr::Float(FloatOp::DynamicLinear { codes, scales, bias }) => {
                let (scales, bias) = (scales.clone(), bias.clone());
                let linear = DynamicLinear::from_codes(options.level, codes, scales, bias);
                let linear = linear.map_err(|error| Error::Node {
                    node: node.name.clone(),
                    op: node.instr.op(),
                    reason: error.to_string(),
                })?;
                float(Box::new(move |x| {
                    // Floats that have no range have no codes.
                    let shape = [x[0].shape()[0], linear.outputs()];
                    linear.run(&x[0]).unwrap_or_else(|_| Tensor::full(&shape, f32::NAN))
                }))
            }
            Instr::Float(op) => match op.convolution(x) {
                Some(conv) => Kernel::FloatConv { conv: Box::new(conv), add: false, relu: false },
                None => float(op.kernel(x)),
            },
        };
        let inputs = node.inputs.iter().map(|id| id.0).collect();
        Ok(Self { node: Some(index), kernel, inputs, output: ValueId::of_node(index).0 })
    }

    /// This layer's step and the node behind it, which [`fusible`](crate::run::fusible) found to be one.
    pub(crate) fn then(mut self, program: &Program, index: usize) -> Self {
        let node = &program.nodes()[index];
        match (&mut self.kernel, &node.instr) {
            (Kernel::Conv(conv), Instr::Add { output, activation }) => {
                let [a, b] = [0, 1].map(|i| grid(program.value(node.inputs[i])));
                conv.add = Some(add_codes(a, b, *output, *activation));
                self.inputs.push(node.inputs[1].0);
            }
            (Kernel::FloatConv { add, .. }, Instr::Float(FloatOp::Add(None))) => {
                *add = true;
                let other = node.inputs.iter().find(|id| id.0 != self.output);
                self.inputs.push(other.expect("another operand").0);
            }
            (Kernel::FloatConv { relu, .. }, Instr::Clip(_)) => *relu = true,
            _ => unreachable!("a {} is not one with the layer before it", node.instr.op()),
        }
        self.output = ValueId::of_node(index).0;
        self
    }

    /// How its output may share its first input's memory.
    pub(crate) fn sharing(&self) -> Sharing {
        match &self.kernel {
            Kernel::View => Sharing::View,
            Kernel::Clip { .. } => Sharing::InPlace,
            Kernel::Input(_)
            | Kernel::Quantize(..)
            | Kernel::Dequantize(_)
            | Kernel::Conv(_)
            | Kernel::Add(_)
            | Kernel::MaxPool(_)
            | Kernel::AvgPool(..)
            | Kernel::Slice { .. }
            | Kernel::Pad { .. }
            | Kernel::Reshape { .. }
            | Kernel::Concat(_)
            | Kernel::FloatConv { .. }
            | Kernel::Float(..) => Sharing::None,
        }
    }

    /// How its layer is computed, if it has one.
    pub(crate) fn algorithm(&self) -> Option<Algorithm> {
        self.conv().map(|conv| conv.packed.algorithm())
    }

    /// Runs of this layer's convolution on blank images, each into the same memory: what its time can be
    /// taken of. Does nothing for other steps.
    pub(crate) fn rehearse(&self, batch: usize) -> impl FnMut() {
        let geometry = self.conv().map(|conv| ConvGeometry { batch, ..conv.geometry });
        let len = |shape: fn(&ConvGeometry) -> [usize; 4]| {
            geometry.as_ref().map_or(0, |geometry| shape(geometry).iter().product())
        };
        let input = vec![0u8; len(ConvGeometry::input_shape)];
        let mut output = vec![0u8; len(ConvGeometry::output_shape)];
        let mut scratch = vec![0u8; self.scratch_len(batch) + ALIGN];
        move || {
            if let (Some(conv), Some(geometry)) = (self.conv(), &geometry) {
                let scratch = aligned(&mut scratch);
                let sink = Output::Requantize(&conv.requantize, &mut output);
                conv.packed.run(geometry, &input, conv.zero_point, sink, scratch);
            }
        }
    }

    /// Bytes of its packed weights.
    pub(crate) fn packed_bytes(&self) -> usize {
        match &self.kernel {
            Kernel::FloatConv { conv, .. } => conv.packed_bytes(),
            _ => self.conv().map_or(0, |conv| conv.packed.packed_bytes()),
        }
    }

    fn conv(&self) -> Option<&Conv> {
        match &self.kernel {
            Kernel::Conv(conv) => Some(conv),
            Kernel::Input(_)
            | Kernel::Quantize(..)
            | Kernel::Dequantize(_)
            | Kernel::Add(_)
            | Kernel::MaxPool(_)
            | Kernel::AvgPool(..)
            | Kernel::Clip { .. }
            | Kernel::Slice { .. }
            | Kernel::Pad { .. }
            | Kernel::Reshape { .. }
            | Kernel::Concat(_)
            | Kernel::View
            | Kernel::FloatConv { .. }
            | Kernel::Float(..) => None,
        }
    }

    /// Bytes of scratch memory it needs.
    pub(crate) fn scratch_len(&self, batch: usize) -> usize {
        let len = |conv: &Conv| conv.packed.scratch_len(&ConvGeometry { batch, ..conv.geometry });
        self.conv().map_or(0, len)
    }

    /// Computes the output from the inputs for some images. All values have their place in the
    /// arena, but for the program's `input`, which has one only if something computes on it.
    pub(crate) fn run<'a>(
        &self,
        level: Level,
        input: Images<'_>,
        images: Range<usize>,
        plan: &Plan,
        arena: &'a mut [u8],
        scratch: &mut [u8],
    ) {
        let batch = images.len();
        let place = |i: usize| plan.place(self.inputs[i], images.clone());
        let output = plan.place(self.output, images.clone());
        let unary = |arena: &'a mut [u8]| {
            let (y, [x]) = carve(arena, output.clone(), [place(0)]);
            (x, y)
        };
        match &self.kernel {
            Kernel::View => {}
            Kernel::Input(shape) => {
                let y = bytemuck::cast_slice_mut(&mut arena[output]);
                kernels::place_input(input, *shape, y);
            }
            Kernel::Quantize(shape, grid) if self.inputs[0] == ValueId::INPUT.0 => {
                codes::quantize(level, input, *shape, *grid, &mut arena[output]);
            }
            Kernel::Quantize(shape, grid) => {
                let (x, y) = unary(arena);
                let x = Images::ChannelsLast(bytemuck::cast_slice(x));
                codes::quantize(level, x, *shape, *grid, y);
            }
            Kernel::Dequantize(grid) => {
                let (x, y) = unary(arena);
                codes::dequantize_in_order(level, x, *grid, bytemuck::cast_slice_mut(y));
            }
            Kernel::Conv(conv) => {
                let geometry = ConvGeometry { batch, ..conv.geometry };
                let mut run = |x: &[u8], y: Output<'_>| {
                    conv.packed.run(&geometry, x, conv.zero_point, y, scratch);
                };
                match &conv.add {
                    None => {
                        let (x, y) = unary(arena);
                        run(x, Output::Requantize(&conv.requantize, y));
                    }
                    Some(add) => {
                        let (y, [x, b]) = carve(arena, output, [place(0), place(1)]);
                        run(x, Output::RequantizeAdd(&conv.requantize, add, b, y));
                    }
                }
            }
            Kernel::Add(add) => {
                let (y, [a, b]) = carve(arena, output, [place(0), place(1)]);
                int8::add_codes(level, a, b, add, y);
            }
            Kernel::MaxPool(geometry) => {
                let (x, y) = unary(arena);
                int8::max_pool(level, &PoolGeometry { batch, ..*geometry }, x, y);
            }
            Kernel::AvgPool(geometry, average) => {
                let (x, y) = unary(arena);
                int8::average_pool(level, &PoolGeometry { batch, ..*geometry }, x, average, y);
            }
            Kernel::Clip { low, high } => {
                if output != place(0) {
                    arena.copy_within(place(0), output.start);
                }
                kernels::clip_in_place(*low, *high, &mut arena[output]);
            }
            Kernel::Slice { axis, start, step, size } => {
                let (x, y) = unary(arena);
                kernels::slice(*axis, *start, *step, *size, x, y);
            }
            Kernel::Pad { axis, before, after, zero_point } => {
                let (x, y) = unary(arena);
                kernels::pad(*axis, *before, *after, *zero_point, x, y);
            }
            Kernel::Reshape { from, to, elements } => {
                let (x, y) = unary(arena);
                match elements {
                    Elements::Codes(_) => kernels::reshape(x, *from, *to, y),
                    Elements::Float => {
                        let (x, y): (&[f32], _) =
                            (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y));
                        kernels::reshape(x, *from, *to, y);
                    }
                }
            }
            Kernel::Concat(parts) => {
                let row = parts.iter().map(|(bytes, _)| bytes).sum();
                let mut start = 0;
                for (i, (bytes, table)) in parts.iter().enumerate() {
                    let (y, [x]) = carve(arena, output.clone(), [place(i)]);
                    kernels::concat(row, start..start + bytes, table.as_deref(), x, y);
                    start += bytes;
                }
            }
            Kernel::FloatConv { conv, add, relu } => {
                let run = |x: &[u8], add: Option<&[u8]>, y: &mut [u8]| {
                    let add = add.map(bytemuck::cast_slice);
                    let (x, y) = (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y));
                    conv.run(batch, x, add, *relu, y);
                };
                if *add {
                    let (y, [x, b]) = carve(arena, output, [place(0), place(1)]);
                    run(x, Some(b), y);
                } else {
                    let (x, y) = unary(arena);
                    run(x, None, y);
                }
            }
            Kernel::Float(kernel, shapes) => {
                let inputs: Vec<Tensor<f32>> = shapes
                    .iter()
                    .enumerate()
                    .map(|(i, shape)| kernels::tensor(&arena[place(i)], batch, shape))
                    .collect();
                let y = kernel(&inputs).channels_last();
                // Images lie channels-last, everything else in logical order.
                let y = if y.rank() == 4 { y } else { y.contiguous() };
                let y =
                    y.as_nhwc().filter(|_| y.rank() == 4).or(y.as_slice()).expect("one of the two");
                arena[output].copy_from_slice(bytemuck::cast_slice(y));
            }
        }
    }
}

fn grid(value: &ValueType) -> QParams {
    value.grid().expect("the builder takes codes only where codes are needed")
}

fn zero_point(value: &ValueType) -> u8 {
    grid(value).zero_point() as u8
}

/// The output's place for writing and the inputs' for reading: the plan keeps them apart.
fn carve<const N: usize>(
    arena: &mut [u8],
    output: Range<usize>,
    inputs: [Range<usize>; N],
) -> (&mut [u8], [&[u8]; N]) {
    let (before, rest) = arena.split_at_mut(output.start);
    let (middle, after) = rest.split_at_mut(output.len());
    let (before, after) = (&*before, &*after);
    let inputs = inputs.map(|input| {
        if input.end <= output.start {
            &before[input]
        } else {
            &after[input.start - output.end..input.end - output.end]
        }
    });
    (middle, inputs)
}
