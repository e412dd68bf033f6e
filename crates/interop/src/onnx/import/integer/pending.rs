//! An operator that waits for the grid of its result.

use ottava_quant::{Activation, Instr, QParams, QuantizedLayer, ValueId, Window};
use ottava_tensor::conv::ConvAttrs;

use super::super::super::attributes::Check;
use super::{Importer, on_one_grid};

/// What computes.
#[derive(Clone)]
pub(super) enum Head {
    Conv(QuantizedLayer, ConvAttrs),
    Linear(QuantizedLayer),
    Add,
    Average {
        window: Option<Window>,
        count_padding: bool,
    },
    /// Nothing: the value comes to another grid, or is clamped.
    Same,
}

/// The values that a result may have; zero is among them.
#[derive(Clone, Copy)]
pub(super) struct Clamp {
    pub low: f32,
    pub high: f32,
}

impl Clamp {
    pub(super) const RELU: Self = Self { low: 0.0, high: f32::MAX };
    const OPEN: Self = Self { low: f32::MIN, high: f32::MAX };

    /// The grid with the codes of these values only.
    fn codes(self, grid: QParams) -> Check<QParams> {
        let codes = grid.quantize(self.low)..=grid.quantize(self.high);
        QParams::new(grid.scale(), grid.zero_point(), codes).map_err(|error| error.to_string())
    }
}

/// An operator, what it reads, and what joined it since.
#[derive(Clone)]
pub(super) struct Pending {
    pub name: String,
    pub head: Head,
    pub inputs: Vec<ValueId>,
    /// The shape of the result, without the batch.
    pub shape: Vec<usize>,
    clamp: Clamp,
    /// What moves elements behind it.
    moves: Vec<Instr>,
}

/// More of them between an operator and its `QuantizeLinear` no exporter writes.
const MAX_MOVES: usize = 16;

impl Pending {
    pub(super) fn new(name: String, head: Head, inputs: Vec<ValueId>, shape: Vec<usize>) -> Self {
        Self { name, head, inputs, shape, clamp: Clamp::OPEN, moves: vec![] }
    }

    /// Whether nothing joined it yet.
    pub(super) fn is_bare(&self) -> bool {
        self.moves.is_empty() && self.clamp.low == f32::MIN && self.clamp.high == f32::MAX
    }

    pub(super) fn clamped(mut self, Clamp { low, high }: Clamp) -> Check<Self> {
        if !(low <= 0.0 && high >= 0.0) {
            return Err(format!("a clip to {low}..{high}, without zero"));
        }
        self.clamp = Clamp { low: self.clamp.low.max(low), high: self.clamp.high.min(high) };
        Ok(self)
    }

    /// The same without the bounds that are not zero, and those: zero is a code of every grid.
    pub(super) fn unclamped(mut self) -> (Self, Clamp) {
        let bounds = self.clamp;
        self.clamp = if bounds.low == 0.0 { Clamp::RELU } else { Clamp::OPEN };
        (self, Clamp { low: if bounds.low == 0.0 { f32::MIN } else { bounds.low }, ..bounds })
    }

    pub(super) fn moved(mut self, moves: Vec<Instr>, shape: Vec<usize>) -> Check<Self> {
        self.moves.extend(moves);
        self.shape = shape;
        match self.moves.len() {
            ..=MAX_MOVES => Ok(self),
            n => Err(format!("{n} operators that only move elements before a QuantizeLinear")),
        }
    }

    /// Appends it to the program, its result on `grid`.
    pub(super) fn emit(self, grid: QParams, importer: &mut Importer) -> Check<ValueId> {
        let Self { name, head, inputs, clamp, moves, .. } = self;
        let relu = clamp.low == 0.0;
        let activation = if relu { Activation::RELU } else { Activation::NONE };
        // A layer's own ReLU takes care of the lower end.
        let output = Clamp { low: if relu { f32::MIN } else { clamp.low }, ..clamp }.codes(grid)?;
        let instr = match head {
            Head::Conv(layer, attrs) => Some(Instr::Conv { layer, attrs, output, activation }),
            Head::Linear(layer) => Some(Instr::Linear { layer, output, activation }),
            Head::Add => Some(Instr::Add { output, activation }),
            Head::Average { window, count_padding } => {
                Some(Instr::AvgPool { window, count_padding, output: clamp.codes(grid)? })
            }
            Head::Same => same(importer, inputs[0], clamp, grid)?,
        };
        let mut id = match instr {
            Some(instr) => importer.push(&name, instr, &inputs)?,
            None => inputs[0],
        };
        for instr in moves {
            id = importer.push(&name, instr, &[id])?;
        }
        Ok(id)
    }
}

/// The instruction that clamps a value and brings it to a grid; none if it is there.
fn same(importer: &Importer, x: ValueId, clamp: Clamp, grid: QParams) -> Check<Option<Instr>> {
    let value = importer.builder.value(x);
    let (from, output) = (value.grid().ok_or("no grid")?, clamp.codes(grid)?);
    if on_one_grid(from, grid) {
        if output.qmin() <= from.qmin() && from.qmax() <= output.qmax() {
            return Ok(None);
        }
        if clamp.low == 0.0 && from.qmax() <= output.qmax() {
            return Ok(Some(Instr::Clip(Activation::RELU)));
        }
    }
    if value.shape.len() != 3 {
        return Err(format!("a vector of shape {:?} comes to another grid", value.shape));
    }
    // The mean over one pixel is that pixel, rounded to the new grid.
    Ok(Some(Instr::AvgPool { window: Some(Window::new(1, 1, 0)), count_padding: false, output }))
}
