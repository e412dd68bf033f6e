//! A node made ready to run: its numbers computed, its weights packed.

use std::ops::Range;

use ottava_tensor::Level;
use ottava_tensor::conv::int8::{AddCodes, Algorithm, Int8Conv, Output, Requantize};
use ottava_tensor::conv::{ConvAttrs, ConvGeometry, PoolGeometry};
use ottava_tensor::pool::int8 as pool;
use ottava_tensor::pool::int8::Average;

use crate::instr::{ValueType, contiguous};
use crate::kernels::{self, Axis, Images};
use crate::plan::{ALIGN, Plan, Sharing};
use crate::workspace::aligned;
use crate::{
    Error, Instr, Options, Program, QParams, QuantizedLayer, Result, ValueId, Window, add_codes,
    average,
};

/// What a step does, to which values.
pub(crate) struct Step {
    /// The program's node; of a layer and the addition behind it, the layer's.
    pub node: usize,
    kernel: Kernel,
    pub inputs: Vec<usize>,
    pub output: usize,
}

/// Geometries are for one image; a run puts its batch in.
enum Kernel {
    Quantize([usize; 3], QParams),
    Dequantize(QParams),
    Conv(Box<Conv>),
    Add(AddCodes),
    MaxPool(PoolGeometry),
    AvgPool(PoolGeometry, Average),
    Relu(u8),
    Slice { axis: Axis, start: usize, step: usize, size: usize },
    Pad { axis: Axis, before: usize, after: usize, zero_point: u8 },
    Flatten([usize; 3]),
    View,
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
    /// The step of the node at `index`.
    pub(crate) fn new(program: &Program, index: usize, options: &Options) -> Result<Self> {
        let node = &program.nodes()[index];
        let x = program.value(node.inputs[0]);
        let refuse = |error: ottava_tensor::Error| Error::Node {
            node: node.name.clone(),
            op: node.instr.op(),
            reason: error.to_string(),
        };
        let conv = |layer: &QuantizedLayer, attrs, output, relu| -> Result<Kernel> {
            // A linear layer is a convolution over images of one pixel.
            let shape = match *layer.codes.shape() {
                [o, c, kh, kw] => [o, c, kh, kw],
                _ => [layer.scales.len(), layer.codes.len() / layer.scales.len(), 1, 1],
            };
            let [c, h, w] = x.image();
            let codes = contiguous(&layer.codes);
            Ok(Kernel::Conv(Box::new(Conv {
                packed: Int8Conv::new(options.level, &codes, shape, attrs, options.algorithm)
                    .map_err(refuse)?,
                geometry: ConvGeometry::new([1, c, h, w], shape, attrs).map_err(refuse)?,
                zero_point: zero_point(x),
                requantize: layer.requantize(grid(x).scale(), output, relu),
                add: None,
            })))
        };
        let windows = |window: Window| window.geometry(x.image()).map_err(refuse);
        let kernel = match &node.instr {
            Instr::Quantize(grid) => Kernel::Quantize(x.image(), grid.to_unsigned()),
            Instr::Dequantize => Kernel::Dequantize(grid(x)),
            Instr::Conv { layer, attrs, output, relu } => conv(layer, *attrs, *output, *relu)?,
            Instr::Linear { layer, output, relu } => {
                conv(layer, ConvAttrs::default(), *output, *relu)?
            }
            Instr::Add { output, relu } => {
                let b = program.value(node.inputs[1]);
                Kernel::Add(add_codes(grid(x), grid(b), *output, *relu))
            }
            Instr::MaxPool(window) => Kernel::MaxPool(windows(*window)?),
            Instr::AvgPool { window, count_padding, output } => {
                let [_, h, w] = x.image();
                let whole = Window { kernel: [h, w], stride: [1, 1], padding: [0; 4] };
                let geometry = windows(window.unwrap_or(whole))?;
                Kernel::AvgPool(geometry, average(grid(x), *output, *count_padding))
            }
            Instr::Relu => Kernel::Relu(zero_point(x)),
            Instr::Slice { axis, start, end, step } => Kernel::Slice {
                axis: Axis::new(x.image(), *axis),
                start: *start,
                step: *step,
                size: (end - start).div_ceil(*step),
            },
            Instr::Pad { axis, before, after } => Kernel::Pad {
                axis: Axis::new(x.image(), *axis),
                before: *before,
                after: *after,
                zero_point: zero_point(x),
            },
            Instr::Flatten => match x.image() {
                // Channels-last and logical order agree.
                [1, _, _] | [_, 1, 1] => Kernel::View,
                shape => Kernel::Flatten(shape),
            },
        };
        let inputs = node.inputs.iter().map(|id| id.0).collect();
        Ok(Self { node: index, kernel, inputs, output: ValueId::of_node(index).0 })
    }

    /// This layer's step and the addition behind it, in one.
    pub(crate) fn with_add(mut self, add: Self) -> Self {
        if let (Kernel::Conv(conv), Kernel::Add(codes)) = (&mut self.kernel, &add.kernel) {
            conv.add = Some(*codes);
            self.inputs.push(add.inputs[1]);
            self.output = add.output;
        }
        self
    }

    /// How its output may share its first input's memory.
    pub(crate) fn sharing(&self) -> Sharing {
        match &self.kernel {
            Kernel::View => Sharing::View,
            Kernel::Relu(_) => Sharing::InPlace,
            Kernel::Quantize(..)
            | Kernel::Dequantize(_)
            | Kernel::Conv(_)
            | Kernel::Add(_)
            | Kernel::MaxPool(_)
            | Kernel::AvgPool(..)
            | Kernel::Slice { .. }
            | Kernel::Pad { .. }
            | Kernel::Flatten(_) => Sharing::None,
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
        self.conv().map_or(0, |conv| conv.packed.packed_bytes())
    }

    fn conv(&self) -> Option<&Conv> {
        match &self.kernel {
            Kernel::Conv(conv) => Some(conv),
            Kernel::Quantize(..)
            | Kernel::Dequantize(_)
            | Kernel::Add(_)
            | Kernel::MaxPool(_)
            | Kernel::AvgPool(..)
            | Kernel::Relu(_)
            | Kernel::Slice { .. }
            | Kernel::Pad { .. }
            | Kernel::Flatten(_)
            | Kernel::View => None,
        }
    }

    /// Bytes of scratch memory it needs.
    pub(crate) fn scratch_len(&self, batch: usize) -> usize {
        let len = |conv: &Conv| conv.packed.scratch_len(&ConvGeometry { batch, ..conv.geometry });
        self.conv().map_or(0, len)
    }

    /// Computes the output from the inputs for `batch` images. All values have their place in the
    /// arena, but for the program's `input`.
    pub(crate) fn run<'a>(
        &self,
        level: Level,
        input: Images<'_>,
        batch: usize,
        plan: &Plan,
        arena: &'a mut [u8],
        scratch: &mut [u8],
    ) {
        let place = |i: usize| plan.place(self.inputs[i], batch);
        let output = plan.place(self.output, batch);
        let unary = |arena: &'a mut [u8]| {
            let (y, [x]) = carve(arena, output.clone(), [place(0)]);
            (x, y)
        };
        match &self.kernel {
            Kernel::View => {}
            Kernel::Quantize(shape, grid) => {
                kernels::quantize(input, *shape, *grid, &mut arena[output]);
            }
            Kernel::Dequantize(grid) => {
                let (x, y) = unary(arena);
                kernels::dequantize_in_order(x, *grid, bytemuck::cast_slice_mut(y));
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
                pool::add_codes(level, a, b, add, y);
            }
            Kernel::MaxPool(geometry) => {
                let (x, y) = unary(arena);
                pool::max_pool(level, &PoolGeometry { batch, ..*geometry }, x, y);
            }
            Kernel::AvgPool(geometry, average) => {
                let (x, y) = unary(arena);
                pool::average_pool(level, &PoolGeometry { batch, ..*geometry }, x, average, y);
            }
            Kernel::Relu(zero_point) => {
                if output != place(0) {
                    arena.copy_within(place(0), output.start);
                }
                kernels::relu_in_place(*zero_point, &mut arena[output]);
            }
            Kernel::Slice { axis, start, step, size } => {
                let (x, y) = unary(arena);
                kernels::slice(*axis, *start, *step, *size, x, y);
            }
            Kernel::Pad { axis, before, after, zero_point } => {
                let (x, y) = unary(arena);
                kernels::pad(*axis, *before, *after, *zero_point, x, y);
            }
            Kernel::Flatten(shape) => {
                let (x, y) = unary(arena);
                kernels::to_logical_order(x, *shape, y, |code| code);
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
